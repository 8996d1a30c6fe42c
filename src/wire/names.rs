//! Names in the description of the API.

use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};

/// Returns the schema of a name: one of `meanings`, each with what it says.
pub(super) fn schema(about: &str, meanings: &[(&str, &str)]) -> Schema {
    let lines: Vec<String> = meanings.iter().map(|(name, meaning)| format!("- `{name}`: {}", meaning.trim())).collect();
    let names: Vec<&str> = meanings.iter().map(|(name, _)| *name).collect();
    Schema::Object(
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .description(Some(format!("{}\n\n{}", about.trim(), lines.join("\n"))))
            .examples(names.first().copied())
            .enum_values(Some(names))
            .build(),
    )
}

/// Describes enums that [`refit_base::names!`] declares.
macro_rules! describe_names {
    ($($name:ident),+ $(,)?) => {
        $(
            impl ::utoipa::PartialSchema for $name {
                fn schema() -> ::utoipa::openapi::RefOr<::utoipa::openapi::Schema> {
                    $crate::wire::names::schema(Self::ABOUT, Self::MEANINGS).into()
                }
            }

            impl ::utoipa::ToSchema for $name {}
        )+
    };
}

pub(super) use describe_names;
