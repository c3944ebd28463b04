//! The syntax of `Sec-WebSocket-Extensions` (RFC 6455 §9.1), the same in requests and responses.
//!
//! [`extensions`] reads one header value. It says nothing about what an extension means: that is for who
//! negotiates it.

use std::borrow::Cow;

use super::{is_token, is_token_octet};

/// The name of a parameter, and its value if it has one.
pub type Param<'a> = (&'a str, Option<Cow<'a, str>>);

/// One extension of a header value, with its parameters: an offer of a client, or the answer of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Its registered name. Compared as it stands.
    pub name: &'a str,
    /// What follows the name. Invariant: well-formed.
    params: &'a [u8],
}

impl<'a> Extension<'a> {
    /// Its parameters in their order. A quoted value comes without its quotes and escapes.
    pub fn params(&self) -> impl Iterator<Item = Param<'a>> + use<'a> {
        let mut cursor = Cursor(self.params);
        std::iter::from_fn(move || cursor.param().expect("checked when the extension was read"))
    }
}

/// A value of `Sec-WebSocket-Extensions` that does not conform to the grammar of RFC 6455 §9.1. Whoever
/// receives one must fail the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a Sec-WebSocket-Extensions header field is malformed (RFC 6455 §9.1)")]
pub struct MalformedExtensions;

/// The extensions in one value of a `Sec-WebSocket-Extensions` header field, in order of preference.
///
/// Ends after the first error. A value without any extension is one.
pub fn extensions(value: &[u8]) -> impl Iterator<Item = Result<Extension<'_>, MalformedExtensions>> {
    let mut cursor = Some(Cursor(value));
    let mut read_any = false;
    std::iter::from_fn(move || {
        let at = cursor.as_mut()?;
        let next = at.extension(read_any);
        read_any = true;
        if !matches!(next, Ok(Some(_))) {
            cursor = None;
        }
        next.transpose()
    })
}

/// What is left of a header value.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// The next extension, with the comma in front of it if it follows another.
    fn extension(&mut self, follows: bool) -> Result<Option<Extension<'a>>, MalformedExtensions> {
        self.skip_white_space();
        if follows && !self.0.is_empty() && !self.eat(b',') {
            return Err(MalformedExtensions);
        }
        // RFC 9110 §5.6.1.2: empty elements of a list are ignored.
        while self.eat(b',') {}
        if self.0.is_empty() && follows {
            return Ok(None);
        }
        let name = self.token()?;
        let from = self.0;
        while self.param()?.is_some() {}
        Ok(Some(Extension { name, params: &from[..from.len() - self.0.len()] }))
    }

    fn param(&mut self) -> Result<Option<Param<'a>>, MalformedExtensions> {
        if !self.eat(b';') {
            return Ok(None);
        }
        let name = self.token()?;
        let value = if self.eat(b'=') { Some(self.value()?) } else { None };
        Ok(Some((name, value)))
    }

    /// A token, or a quoted string that holds a token once it is unescaped.
    fn value(&mut self) -> Result<Cow<'a, str>, MalformedExtensions> {
        if !self.eat(b'"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        loop {
            let (octet, rest) = match self.0 {
                [b'"', rest @ ..] => {
                    self.0 = rest;
                    break;
                }
                [b'\\', octet, rest @ ..] | [octet, rest @ ..] => (*octet, rest),
                [] => return Err(MalformedExtensions),
            };
            value.push(octet.into());
            self.0 = rest;
        }
        if is_token(value.as_bytes()) { Ok(Cow::Owned(value)) } else { Err(MalformedExtensions) }
    }

    fn token(&mut self) -> Result<&'a str, MalformedExtensions> {
        self.skip_white_space();
        let len = self.0.iter().take_while(|octet| is_token_octet(**octet)).count();
        let (token, rest) = self.0.split_at(len);
        self.0 = rest;
        match std::str::from_utf8(token) {
            Ok(token) if !token.is_empty() => Ok(token),
            _ => Err(MalformedExtensions),
        }
    }

    /// Skips white space, and this octet if it comes next.
    fn eat(&mut self, octet: u8) -> bool {
        self.skip_white_space();
        match self.0 {
            [first, rest @ ..] if *first == octet => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn skip_white_space(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written back in one way only.
    fn normal(value: &str) -> Result<String, MalformedExtensions> {
        let mut normal = Vec::new();
        for extension in extensions(value.as_bytes()) {
            let extension = extension?;
            let mut text = extension.name.to_owned();
            for (name, value) in extension.params() {
                text.push(';');
                text.push_str(name);
                if let Some(value) = value {
                    text.push('=');
                    text.push_str(&value);
                }
            }
            normal.push(text);
        }
        Ok(normal.join(","))
    }

    #[test]
    fn offers_come_in_their_order_with_their_parameters() {
        assert_eq!(normal("deflate-stream").unwrap(), "deflate-stream");
        assert_eq!(
            normal("mux; max-channels=4; flow-control, deflate-stream").unwrap(),
            "mux;max-channels=4;flow-control,deflate-stream"
        );
        assert_eq!(normal(" a ; b = c\t,\td ").unwrap(), "a;b=c,d");
    }

    #[test]
    fn a_quoted_value_holds_a_token() {
        assert_eq!(normal(r#"a; b="10""#).unwrap(), "a;b=10");
        assert_eq!(normal(r#"a; b="\1\0"; c"#).unwrap(), "a;b=10;c");
        for malformed in [
            r#"a; b="""#,
            r#"a; b="1 0""#,
            r#"a; b="1,0""#,
            r#"a; b="10"#,
            r#"a; b="10\"#,
            r#"a; b="10"c"#,
            r#"a; b="é""#,
        ] {
            assert_eq!(normal(malformed), Err(MalformedExtensions), "{malformed}");
        }
    }

    #[test]
    fn empty_elements_are_ignored_but_an_empty_list_is_not() {
        assert_eq!(normal(", a,, b ,").unwrap(), "a,b");
        for malformed in ["", " ", ",", ", ,"] {
            assert_eq!(normal(malformed), Err(MalformedExtensions), "{malformed:?}");
        }
    }

    #[test]
    fn what_the_grammar_does_not_know_is_malformed() {
        for malformed in
            ["a;", "a;;b", "a; b=", "a; =c", "a b", "a; b c", "a=b", "a; b=c d", "\"a\"", "a; b=c=d", "é"]
        {
            assert_eq!(normal(malformed), Err(MalformedExtensions), "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn what_is_normal_stays_so_and_nothing_panics(value in "[ab ,;=\"\\\\\t]{0,12}") {
            if let Ok(once) = normal(&value) {
                prop_assert_eq!(normal(&once), Ok(once.clone()), "{}", once);
            }
        }

        #[test]
        fn any_octets_end(octets in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(extensions(&octets).count() <= octets.len().max(1));
        }
    }
}
