//! What an appliance said: as what it means, and as the JSON that it was.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Something that an appliance said. A newer one may say more than is understood here: what is printed with `--json` is all of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said<T> {
    json: Value,
    meaning: T,
}

impl<T: Serialize> Said<T> {
    /// Returns `meaning` as if an appliance had said it.
    pub(super) fn here(meaning: T) -> Self {
        // There is nothing in these types that JSON cannot say.
        Self { json: serde_json::to_value(&meaning).unwrap_or_default(), meaning }
    }
}

impl<T> Deref for Said<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.meaning
    }
}

impl<T> fmt::Display for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.json.fmt(f)
    }
}

impl<T> Serialize for Said<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Said<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let meaning = T::deserialize(json.clone()).map_err(serde::de::Error::custom)?;
        Ok(Self { json, meaning })
    }
}

/// Returns `answer` in JSON, on one line.
pub(super) fn in_json(answer: &impl Serialize) -> String {
    // Keys in order, as everything that is printed has them.
    serde_json::to_value(answer).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TicketAnswer;

    #[test]
    fn what_is_not_understood_is_printed_all_the_same() {
        let text = r#"{"more":1,"ticket":{"exit":null,"id":"a-1","new":[],"origin":"x","reason":null,"request":"dance","state":"accepted"}}"#;
        let said: Said<TicketAnswer> = serde_json::from_str(text).expect("a ticket");
        assert_eq!((said.to_string(), said.ticket.id.as_str()), (text.to_owned(), "a-1"));
        assert!(!said.ticket.is_final() && said.ticket.request.name() == "dance");
        assert_eq!(*Said::here(said.meaning.clone()), *said);
    }
}
