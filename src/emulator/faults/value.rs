//! The values of a fault script, each within its limits by its type.
//!
//! Owns the checks that happen while a file is read, so that a refusal knows line and field; the message
//! of each says what would do.

use std::fmt;

use jiff::Timestamp;
#[cfg(test)]
use schemars::JsonSchema;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Length of a name, a field's name or a path.
pub(crate) const MAX_TEXT_BYTES: usize = 256;

/// A path with `*` for a segment and, at its end, `**` for any number of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(JsonSchema), schemars(extend("pattern" = "^/v2(/[^/]+)*$", "maxLength" = MAX_TEXT_BYTES)))]
pub(crate) struct PathPattern(String);

impl TryFrom<String> for PathPattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut segments = text.strip_prefix('/').unwrap_or("").split('/');
        let starts = segments.next() == Some("v2");
        let segments: Vec<&str> = segments.collect();
        let ends = segments.iter().rposition(|segment| *segment == "**");
        let whole = segments.iter().all(|segment| !segment.is_empty());
        if text.len() > MAX_TEXT_BYTES || !starts || !whole {
            return Err("a path such as /v2/Conversations/*/Communications, 256 bytes at most");
        }
        if ends.is_some_and(|at| at + 1 != segments.len())
            || segments.iter().filter(|segment| **segment == "**").count() > 1
        {
            return Err("`**` stands for the rest of a path, once and at its end");
        }
        Ok(PathPattern(text))
    }
}

impl PathPattern {
    /// Whether `path`, as in a request line, is one of these.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut given = path.split('/');
        for wanted in self.0.split('/') {
            if wanted == "**" {
                return true;
            }
            match given.next() {
                Some(segment) if wanted == "*" => {
                    if segment.is_empty() {
                        return false;
                    }
                }
                Some(segment) if segment == wanted => {}
                _ => return false,
            }
        }
        given.next().is_none()
    }
}

/// A short text that a header can carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(JsonSchema), schemars(extend("minLength" = 1, "maxLength" = MAX_TEXT_BYTES)))]
pub(crate) struct Text(String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let visible = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        match visible && (1..=MAX_TEXT_BYTES).contains(&text.len()) {
            true => Ok(Text(text)),
            false => Err("1 to 256 visible ASCII characters"),
        }
    }
}

impl Text {
    /// Its content.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A share from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
#[cfg_attr(test, derive(JsonSchema), schemars(extend("minimum" = 0, "maximum" = 1)))]
pub(crate) struct Share(f64);

impl TryFrom<f64> for Share {
    type Error = &'static str;

    fn try_from(share: f64) -> Result<Self, Self::Error> {
        match (0.0..=1.0).contains(&share) {
            true => Ok(Share(share)),
            false => Err("a share from 0 to 1"),
        }
    }
}

impl Share {
    /// 0..1.
    pub(crate) fn get(self) -> f64 {
        self.0
    }
}

/// A time, RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(JsonSchema), schemars(with = "String", extend("format" = "date-time")))]
pub(crate) struct Moment(Timestamp);

impl TryFrom<String> for Moment {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.parse() {
            Ok(time) => Ok(Moment(time)),
            Err(_) => Err("a time such as 2026-11-22T12:00:00Z"),
        }
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Moment {
    /// The time.
    pub(crate) fn get(self) -> Timestamp {
        self.0
    }
}

/// A position, counted from 1.
pub(crate) type Ordinal = Whole<1, 1_000_000_000>;

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Whole<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Whole<MIN, MAX> {
    /// The number.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        match (MIN..=MAX).contains(&number) {
            true => Ok(Whole(number)),
            false => Err(D::Error::custom(format_args!(
                "a whole number from {MIN} to {MAX}"
            ))),
        }
    }
}

/// At most `MAX` of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Few<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Few<T, MAX> {
    /// All of them.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<T, const MAX: usize> Default for Few<T, MAX> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Few<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MAX: usize>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
            type Value = Few<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    if all.len() == MAX {
                        return Err(A::Error::custom(format_args!(
                            "a list of at most {MAX} entries"
                        )));
                    }
                    all.push(one);
                }
                Ok(Few(all))
            }
        }

        deserializer.deserialize_seq(Entries(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Few, Whole};

    impl<const MIN: u64, const MAX: u64> JsonSchema for Whole<MIN, MAX> {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            format!("From{MIN}To{MAX}").into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX})
        }
    }

    impl<T: JsonSchema, const MAX: usize> JsonSchema for Few<T, MAX> {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            format!("AtMost{MAX}{}", T::schema_name()).into()
        }

        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            let items = generator.subschema_for::<T>();
            json_schema!({"type": "array", "items": items, "maxItems": MAX})
        }
    }
}
