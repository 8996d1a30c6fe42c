//! [`names!`](crate::names): an enum that is a name in JSON.

/// Declares an enum whose values are names in JSON: what is written between programs of several versions.
///
/// A name that this version does not know is read as `Other`, and written as it was read. `ALL` holds the names that it knows, and
/// `MEANINGS` what each says, for documentation.
#[macro_export]
macro_rules! names {
    (
        $(#[doc = $about:literal])+
        $vis:vis enum $name:ident {
            $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[doc = $doc])+ $variant,)+
            /// A name that another version of this program has given.
            Other(String),
        }

        impl $name {
            /// Every name that this version knows.
            $vis const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// What this is a name of.
            $vis const ABOUT: &'static str = concat!($($about),+);
            /// The same names, with what each says.
            $vis const MEANINGS: &'static [(&'static str, &'static str)] = &[$(($text, concat!($($doc),+))),+];

            /// Returns the name.
            $vis fn name(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(name) => name,
                }
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                match name {
                    $($text => Self::$variant,)+
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl $crate::serde::Serialize for $name {
            fn serialize<S: $crate::serde::Serializer>(&self, serializer: S) -> ::std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> $crate::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                let name = <::std::borrow::Cow<'de, str> as $crate::serde::Deserialize>::deserialize(deserializer)?;
                Ok(Self::from(&*name))
            }
        }
    };
}

#[cfg(test)]
mod tests {
    names! {
        /// How a
        /// lamp is.
        enum Lamp {
            /// It shines.
            On = "on",
            /// It does not.
            Off = "off",
        }
    }

    #[test]
    fn a_name_of_another_version_is_kept() {
        for (lamp, name) in [(Lamp::On, "on"), (Lamp::Off, "off"), (Lamp::Other("dim".to_owned()), "dim")] {
            assert_eq!(Lamp::from(name), lamp);
            assert_eq!((lamp.name(), format!("{lamp:>4}")), (name, format!("{name:>4}")));
        }
        assert_eq!(Lamp::ALL, [Lamp::On, Lamp::Off]);
        assert_eq!(
            (Lamp::ABOUT, Lamp::MEANINGS),
            (" How a lamp is.", &[("on", " It shines."), ("off", " It does not.")][..])
        );
    }
}
