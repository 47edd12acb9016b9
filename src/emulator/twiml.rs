//! TwiML, as far as it brings a call into a conversation.
//!
//! Owns what of a document matters here: `<ConversationRelay>` inside `<Connect>` and `<Transcription>`
//! inside `<Start>` with the conversation that they name, and whom `<Dial>` connects. Refuses to carry out
//! any verb, and to know whether a named conversation exists (`state::ingest`).
//!
//! Guarantees: `conversationId` wins over `conversationConfiguration`. Attributes that TwiML does not know
//! do nothing, and no error, above all `conversationConfigurationId`; that one is noted, because nobody
//! else would say so. A document is bounded by [`MAX_DOCUMENT_BYTES`], [`MAX_DEPTH`] and [`MAX_LISTENERS`];
//! a document type is refused, so that nothing can be declared that expands.
//!
//! Fails with [`Malformed`], for which `rest` gives Twilio's error numbers.

use std::sync::Arc;

use quick_xml::XmlVersion;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;

/// Twilio's limit of a TwiML document.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 64 * 1024;
/// Elements inside each other; TwiML itself needs four.
pub(crate) const MAX_DEPTH: usize = 16;
/// Verbs of one document that hear the call; each writes all of it.
pub(crate) const MAX_LISTENERS: usize = 4;

/// One document, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Document {
    /// In the order of the document.
    pub(crate) listeners: Vec<Listener>,
    /// Whom the first `<Dial>` calls: a number, a client's identity, a SIP URI.
    pub(crate) dial: Option<Arc<str>>,
}

/// A verb that hears the call with an engine of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) verb: Verb,
    /// `None`: what it hears goes into no conversation.
    pub(crate) target: Option<Target>,
    /// What recognises speech; the verb's own default where the document does not say.
    pub(crate) engine: Arc<str>,
    /// `conversationConfigurationId` was given, which is no attribute.
    pub(crate) misnamed: bool,
}

/// Which verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    ConversationRelay,
    Transcription,
}

/// Where a verb puts what it hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Into this conversation, whatever the grouping says.
    Conversation(Arc<str>),
    /// Into the one that this configuration's grouping finds or opens.
    Configuration(Arc<str>),
}

/// Why a document cannot be read. None of them quotes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Beyond [`MAX_DOCUMENT_BYTES`].
    #[error("the TwiML is longer than {MAX_DOCUMENT_BYTES} bytes")]
    TooLong,
    /// Beyond [`MAX_DEPTH`].
    #[error("the TwiML has more than {MAX_DEPTH} elements inside each other")]
    TooDeep,
    /// Beyond [`MAX_LISTENERS`].
    #[error("the TwiML has more than {MAX_LISTENERS} verbs that transcribe the call")]
    TooManyListeners,
    /// Entities are declared there.
    #[error("the TwiML has a document type; leave it out")]
    DocumentType,
    /// Another root, several of them, text around it, or none at all.
    #[error("the TwiML is not one <Response> element")]
    NotAResponse,
    /// No XML.
    #[error("the TwiML is not well-formed at byte {0}")]
    Xml(u64),
}

/// Reads one document.
pub(crate) fn parse(xml: &str) -> Result<Document, Malformed> {
    if xml.len() > MAX_DOCUMENT_BYTES {
        return Err(Malformed::TooLong);
    }
    let mut reader = Reader::from_str(xml);
    let config = reader.config_mut();
    config.enable_all_checks(true);
    config.expand_empty_elements = true;
    let mut parsing = Parsing::default();
    loop {
        let event = reader
            .read_event()
            .map_err(|_| Malformed::Xml(reader.error_position()))?;
        let at = reader.buffer_position();
        match event {
            Event::Start(element) => parsing.start(&element, at)?,
            Event::End(_) => parsing.end(),
            Event::Text(text) => parsing.text(&text.decode().map_err(|_| Malformed::Xml(at))?)?,
            Event::CData(text) => parsing.text(&text.decode().map_err(|_| Malformed::Xml(at))?)?,
            Event::GeneralRef(reference) => {
                let resolved = resolve(&reference).ok_or(Malformed::Xml(at))?;
                parsing.text(&resolved)?;
            }
            Event::DocType(_) => return Err(Malformed::DocumentType),
            Event::Eof => return parsing.finish(at),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Empty(_) => unreachable!("empty elements come as start and end"),
        }
    }
}

/// What the place in the document means for what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Response,
    Connect,
    Start,
    Dial,
    /// `<Number>`, `<Client>`, `<Sip>` inside `<Dial>`.
    Party,
    Other,
}

#[derive(Default)]
struct Parsing {
    document: Document,
    open: Vec<Element>,
    rooted: bool,
    /// Text of the first `<Dial>` or of the first party inside it.
    dialled: String,
    dial_over: bool,
}

impl Parsing {
    fn start(&mut self, element: &BytesStart<'_>, at: u64) -> Result<(), Malformed> {
        if self.open.len() == MAX_DEPTH {
            return Err(Malformed::TooDeep);
        }
        let name = element.name();
        let known = match (self.open.last(), name.as_ref()) {
            (None, b"Response") if !self.rooted => Element::Response,
            (None, _) => return Err(Malformed::NotAResponse),
            (Some(Element::Response), b"Connect") => Element::Connect,
            (Some(Element::Response), b"Start") => Element::Start,
            (Some(Element::Response), b"Dial") => Element::Dial,
            (Some(Element::Dial), b"Number" | b"Client" | b"Sip") => Element::Party,
            _ => Element::Other,
        };
        let verb = match (self.open.last(), name.as_ref()) {
            (Some(Element::Connect), b"ConversationRelay") => Some(Verb::ConversationRelay),
            (Some(Element::Start), b"Transcription") => Some(Verb::Transcription),
            _ => None,
        };
        // Attributes of every element are read: a repeated or unquoted one is malformed anywhere.
        let listener = listener(verb.unwrap_or(Verb::Transcription), element, at)?;
        if verb.is_some() {
            if self.document.listeners.len() == MAX_LISTENERS {
                return Err(Malformed::TooManyListeners);
            }
            self.document.listeners.push(listener);
        }
        self.rooted = true;
        self.open.push(known);
        Ok(())
    }

    fn end(&mut self) {
        let ended = self.open.pop();
        if matches!(ended, Some(Element::Dial | Element::Party)) {
            self.dial_over |= !self.dialled.trim().is_empty();
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Malformed> {
        match self.open.last() {
            None if !text.trim().is_empty() => return Err(Malformed::NotAResponse),
            Some(Element::Dial | Element::Party) if !self.dial_over => self.dialled.push_str(text),
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, at: u64) -> Result<Document, Malformed> {
        if !self.open.is_empty() {
            return Err(Malformed::Xml(at));
        }
        if !self.rooted {
            return Err(Malformed::NotAResponse);
        }
        let dialled = self.dialled.trim();
        self.document.dial = (!dialled.is_empty()).then(|| dialled.into());
        Ok(self.document)
    }
}

fn listener(verb: Verb, element: &BytesStart<'_>, at: u64) -> Result<Listener, Malformed> {
    let (mut conversation, mut configuration, mut engine) = (None, None, None);
    let mut misnamed = false;
    let engine_attribute: &[u8] = match verb {
        Verb::ConversationRelay => b"transcriptionProvider",
        Verb::Transcription => b"transcriptionEngine",
    };
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|_| Malformed::Xml(at))?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|_| Malformed::Xml(at))?;
        let given = (!value.is_empty()).then(|| Arc::<str>::from(&*value));
        match attribute.key.as_ref() {
            b"conversationId" => conversation = given,
            b"conversationConfiguration" => configuration = given,
            b"conversationConfigurationId" => misnamed = true,
            name if name == engine_attribute => engine = given,
            _ => {}
        }
    }
    // Twilio's defaults of the two verbs.
    let default = match verb {
        Verb::ConversationRelay => "deepgram",
        Verb::Transcription => "google",
    };
    Ok(Listener {
        verb,
        target: conversation
            .map(Target::Conversation)
            .or(configuration.map(Target::Configuration)),
        engine: engine.map_or(default.into(), |engine| engine.to_lowercase().into()),
        misnamed,
    })
}

/// A character or one of XML's own five; there are no others without a document type.
fn resolve(reference: &BytesRef<'_>) -> Option<String> {
    if let Some(character) = reference.resolve_char_ref().ok()? {
        return Some(character.to_string());
    }
    resolve_predefined_entity(&reference.decode().ok()?).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(xml: &str) -> Listener {
        let document = parse(xml).unwrap();
        let [listener] = &document.listeners[..] else {
            panic!("{document:?}");
        };
        listener.clone()
    }

    fn relay(attributes: &str) -> Listener {
        one(&format!(
            "<Response><Connect><ConversationRelay url=\"wss://a/b\" {attributes}/></Connect></Response>"
        ))
    }

    fn transcription(attributes: &str) -> Listener {
        one(&format!(
            "<Response><Start><Transcription {attributes}/></Start><Say>Welcome.</Say></Response>"
        ))
    }

    #[test]
    fn both_verbs_take_both_attributes() {
        let conversation = Some(Target::Conversation("v1".into()));
        let configuration = Some(Target::Configuration("c1".into()));
        for verb in [relay, transcription] {
            assert_eq!(verb("conversationId='v1'").target, conversation);
            assert_eq!(
                verb("conversationConfiguration=\"c1\"").target,
                configuration
            );
            let both = verb("conversationConfiguration='c1' conversationId='v1'");
            assert_eq!(both.target, conversation, "conversationId wins");
            assert_eq!(verb("").target, None);
            assert_eq!(verb("conversationId=''").target, None);
        }
        assert_eq!(relay("").verb, Verb::ConversationRelay);
        assert_eq!(transcription("").verb, Verb::Transcription);
    }

    #[test]
    fn fact_7_the_attribute_with_id_at_its_end_is_silently_ignored() {
        let wrong = relay("conversationConfigurationId='c1'");
        assert_eq!((wrong.target, wrong.misnamed), (None, true));
        let right = relay("conversationConfigurationId='c1' conversationConfiguration='c2'");
        assert_eq!(right.target, Some(Target::Configuration("c2".into())));
        assert_eq!(relay("CONVERSATIONID='v1'").target, None, "names have case");
    }

    #[test]
    fn an_engine_is_the_documents_or_the_verbs_default() {
        assert_eq!(&*relay("").engine, "deepgram");
        assert_eq!(&*transcription("").engine, "google");
        assert_eq!(&*relay("transcriptionProvider='Google'").engine, "google");
        let other = transcription("transcriptionEngine='deepgram' transcriptionProvider='x'");
        assert_eq!(&*other.engine, "deepgram");
    }

    #[test]
    fn verbs_elsewhere_are_not_verbs() {
        for xml in [
            "<Response><ConversationRelay conversationId='v'/></Response>",
            "<Response><Start><ConversationRelay conversationId='v'/></Start></Response>",
            "<Response><Connect><Transcription conversationId='v'/></Connect></Response>",
            "<Response><Say>&lt;Start/&gt;</Say><!-- <Start><Transcription/></Start> --></Response>",
            "<Response><Say><Start><Transcription conversationId='v'/></Start></Say></Response>",
            "<Response><![CDATA[<Start><Transcription/></Start>]]></Response>",
        ] {
            assert_eq!(parse(xml).unwrap().listeners, [], "{xml}");
        }
    }

    #[test]
    fn a_handoff_names_whom_it_calls() {
        let dial = |inside: &str| {
            let xml = format!("<?xml version='1.0'?><Response><Dial>{inside}</Dial></Response>");
            parse(&xml).unwrap().dial
        };
        assert_eq!(dial(" +15550001 ").as_deref(), Some("+15550001"));
        assert_eq!(dial("<Client>agent-1</Client>").as_deref(), Some("agent-1"));
        assert_eq!(
            dial("\n  <Number>+15550001</Number>\n  <Number>+15550002</Number>").as_deref(),
            Some("+15550001"),
            "the first"
        );
        assert_eq!(dial("<Sip>sip:a&#64;b</Sip>").as_deref(), Some("sip:a@b"));
        assert_eq!(dial("<Queue>support</Queue>"), None);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = format!(
            "<Response>{}{}</Response>",
            "<a>".repeat(16),
            "</a>".repeat(16)
        );
        let long = format!("<Response>{}</Response>", " ".repeat(MAX_DOCUMENT_BYTES));
        let many = "<Start><Transcription/></Start>".repeat(MAX_LISTENERS + 1);
        let many = format!("<Response>{many}</Response>");
        for (xml, expected) in [
            ("", Malformed::NotAResponse),
            ("hello", Malformed::NotAResponse),
            ("<Respond/>", Malformed::NotAResponse),
            ("<Response/><Response/>", Malformed::NotAResponse),
            ("<Response/>after", Malformed::NotAResponse),
            (
                "<!DOCTYPE r [<!ENTITY a 'aaaa'>]><Response/>",
                Malformed::DocumentType,
            ),
            (&deep, Malformed::TooDeep),
            (&long, Malformed::TooLong),
            (&many, Malformed::TooManyListeners),
        ] {
            assert_eq!(parse(xml), Err(expected), "{xml:.40}");
        }
        for xml in [
            "<Response>",
            "<Response><Connect></Response>",
            "<Response><Say>&a;</Say></Response>",
            "<Response><Say>a & b</Say></Response>",
            "<Response><Start><Transcription conversationId=v/></Start></Response>",
            "<Response><Start><Transcription a='1' a='2'/></Start></Response>",
            "<Response><Start><Transcription conversationId='&b;'/></Start></Response>",
            "<Response><Say",
            "</Response>",
        ] {
            assert!(matches!(parse(xml), Err(Malformed::Xml(_))), "{xml}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(parts in prop::collection::vec(prop::sample::select(vec![
            "<Response>", "</Response>", "<Connect>", "</Connect>", "<Start>", "</Start>", "<Dial>",
            "<Transcription conversationId='v'/>", "<ConversationRelay ", "/>", ">", "&amp;", "&x;",
            "<!--", "-->", "<![CDATA[", "]]>", "<?", "?>", "é", "'", "\"", "=",
        ]), 0..24)) {
            let _ = parse(&parts.concat());
        }
    }
}
