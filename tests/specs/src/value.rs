//! TLA+ values as TLC prints them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A value. Sets and records are sorted, so that equal values are equal here however TLC orders
/// them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// A number.
    Int(i64),
    /// `TRUE` or `FALSE`.
    Bool(bool),
    /// A string, or a model value.
    Text(String),
    /// A sequence or tuple.
    Seq(Vec<Value>),
    /// A set.
    Set(BTreeSet<Value>),
    /// A record.
    Record(BTreeMap<String, Value>),
}

impl Value {
    /// A string.
    pub fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    /// A record with these fields.
    pub fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
        Value::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// A field of a record.
    ///
    /// # Panics
    /// There is none of this name: the model and its reader do not fit together.
    pub fn at(&self, field: &str) -> &Value {
        match self {
            Value::Record(fields) if fields.contains_key(field) => &fields[field],
            other => panic!("no field {field} in {other}"),
        }
    }

    /// A number.
    ///
    /// # Panics
    /// It is none.
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(n) => *n,
            other => panic!("not a number: {other}"),
        }
    }

    /// A string.
    ///
    /// # Panics
    /// It is none.
    pub fn str(&self) -> &str {
        match self {
            Value::Text(text) => text,
            other => panic!("not a string: {other}"),
        }
    }

    /// The elements of a sequence or set.
    ///
    /// # Panics
    /// It is neither.
    pub fn items(&self) -> Vec<&Value> {
        match self {
            Value::Seq(items) => items.iter().collect(),
            Value::Set(items) => items.iter().collect(),
            other => panic!("neither sequence nor set: {other}"),
        }
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Value {
        Value::Int(n)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, items: &mut dyn Iterator<Item = &Value>| {
            for (i, item) in items.enumerate() {
                write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
            }
            Ok(())
        };
        match self {
            Value::Int(n) => write!(f, "{n}"),
            Value::Bool(b) => write!(f, "{}", if *b { "TRUE" } else { "FALSE" }),
            Value::Text(text) => write!(f, "\"{text}\""),
            Value::Seq(items) => {
                write!(f, "<<")?;
                list(f, &mut items.iter())?;
                write!(f, ">>")
            }
            Value::Set(items) => {
                write!(f, "{{")?;
                list(f, &mut items.iter())?;
                write!(f, "}}")
            }
            Value::Record(fields) => {
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name} |-> {value}", if i == 0 { "[" } else { ", " })?;
                }
                write!(f, "]")
            }
        }
    }
}

/// Parses one value; what follows it is returned too. `None` if this is no value: a file of TLC's
/// holds other text as well.
pub fn parse(text: &str) -> Option<(Value, &str)> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix("<<") {
        let (items, rest) = list(rest, ">>")?;
        return Some((Value::Seq(items), rest));
    }
    if let Some(rest) = text.strip_prefix('{') {
        let (items, rest) = list(rest, "}")?;
        return Some((Value::Set(items.into_iter().collect()), rest));
    }
    if let Some(rest) = text.strip_prefix('[') {
        return record(rest);
    }
    if let Some(rest) = text.strip_prefix('"') {
        // The models' strings have no quotes in them.
        let (inner, rest) = rest.split_once('"')?;
        return Some((Value::Text(inner.to_owned()), rest));
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))?;
    let (word, rest) = text.split_at(end);
    let value = match word {
        "" => return None,
        "TRUE" => Value::Bool(true),
        "FALSE" => Value::Bool(false),
        _ => word.parse().map_or_else(|_| Value::text(word), Value::Int),
    };
    Some((value, rest))
}

fn list<'a>(mut text: &'a str, close: &str) -> Option<(Vec<Value>, &'a str)> {
    let mut items = Vec::new();
    if let Some(rest) = text.trim_start().strip_prefix(close) {
        return Some((items, rest));
    }
    loop {
        let (item, rest) = parse(text)?;
        items.push(item);
        let rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(rest) => text = rest,
            None => return Some((items, rest.strip_prefix(close)?)),
        }
    }
}

fn record(mut text: &str) -> Option<(Value, &str)> {
    let mut fields = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("|->")?;
        let (value, rest) = parse(rest)?;
        fields.insert(name.trim().to_owned(), value);
        let rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(rest) => text = rest,
            None => return Some((Value::Record(fields), rest.strip_prefix(']')?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tlc_prints_over_several_lines_is_read_as_one_value() {
        let text = "<< \"transition\",\n   [ now |-> 0,\n     node |-> <<[state |-> \"gone\"]>>,\n     \
                    gifts |-> {},\n ok |-> TRUE ],\n {3, 1} >> rest";
        let (value, rest) = parse(text).expect("a value");
        assert_eq!(rest, " rest");
        let shown = "<<\"transition\", [gifts |-> {}, node |-> <<[state |-> \"gone\"]>>, \
                     now |-> 0, ok |-> TRUE], {1, 3}>>";
        assert_eq!(value.to_string(), shown);
        assert_eq!(parse(&format!("{shown} ")).expect("a value").0, value);
    }

    #[test]
    fn what_was_cut_off_is_no_value() {
        for text in ["<<1, 2", "[a |-> ", "{1, ", "\"x", "12"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
