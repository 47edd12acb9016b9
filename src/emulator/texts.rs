//! What people write and say: made-up sentences in many languages, and the texts that break pipelines.
//!
//! Owns the kinds of text and how often each comes. Refuses real messages: every sentence was made up for
//! this file. What a text is depends on its generator alone.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// Longest text of a message, in characters: Twilio's limit for SMS and WhatsApp.
pub(crate) const MAX_TEXT_CHARS: usize = 1_600;

/// A kind of written text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TextKind {
    /// One to four sentences of one language.
    Plain,
    /// With emoji, joined ones and flags among them.
    Emoji,
    /// Several lines, tabs, quotes, backslashes.
    Lines,
    /// Arabic or Hebrew, with Latin digits inside.
    RightToLeft,
    /// Nothing: a message that had only media.
    Empty,
    /// [`MAX_TEXT_CHARS`] characters.
    Longest,
}

/// ISO 639-1 codes of the languages, by their numbers: English twice, because most traffic is.
pub(crate) const CODES: [&str; 12] = [
    "en", "en", "es", "de", "fr", "pt", "ja", "zh", "ko", "hi", "ru", "th",
];

/// Left to right; in the order of [`CODES`].
const LANGUAGES: &[&[&str]] = &[
    &[
        "My parcel was promised for Tuesday and is not here.",
        "Could you look up the order for me?",
        "Thanks, that solves it.",
        "I was charged twice for the same invoice.",
        "Let me check that for you, one moment please.",
        "Your appointment is moved to Friday at half past nine.",
        "Is there anything else that I can do for you?",
        "The tracking page has said \"in transit\" for four days.",
    ],
    &[
        "I'd like to change the delivery address.",
        "The router blinks red & won't connect.",
        "We have refunded 24.90 to your card.",
        "Sorry for the wait; I'm with you now.",
        "Which size do you need, 40 or 42?",
    ],
    &[
        "¿Pueden cambiar la fecha de entrega?",
        "El pedido llegó incompleto, falta una caja.",
        "Ya está solucionado, muchas gracias.",
    ],
    &[
        "Die Rechnung stimmt leider nicht, größter Posten fehlt.",
        "Können Sie mich morgen früh zurückrufen?",
        "Ich schicke Ihnen gleich ein Foto.",
    ],
    &[
        "Le colis est arrivé abîmé à l'accueil.",
        "Où puis-je déposer le retour ?",
        "Très bien, à demain !",
    ],
    &[
        "Não consigo entrar na minha conta.",
        "A sua reserva está confirmada para amanhã.",
    ],
    &[
        "注文の状況を教えてください。",
        "かしこまりました。少々お待ちください。",
    ],
    &["我的包裹还没有到。", "请稍等，我帮您查询一下。"],
    &["주문을 취소하고 싶어요.", "확인해 드리겠습니다."],
    &["मेरा ऑर्डर अभी तक नहीं आया है।", "कृपया थोड़ी देर प्रतीक्षा करें।"],
    &["Заказ до сих пор не пришёл.", "Спасибо, всё работает."],
    &["ฉันต้องการคืนสินค้า", "กรุณารอสักครู่ค่ะ"],
];

const RIGHT_TO_LEFT: &[&str] = &[
    "متى يصل الطلب رقم 4711؟",
    "شكراً جزيلاً، تم حل المشكلة.",
    "איפה החבילה שלי? מספר 90210",
    "תודה רבה, הכול מסודר.",
];

const EMOJI: &[&str] = &["👍", "🎉", "😂", "❤️", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇭", "👍🏽", "🙏", "📦"];

/// Draws a kind: most texts are plain, and every kind is common enough to occur in a few hundred.
pub(crate) fn draw_kind(random: &mut ChaCha8Rng) -> TextKind {
    match random.random_range(0..100) {
        0..10 => TextKind::Emoji,
        10..17 => TextKind::Lines,
        17..25 => TextKind::RightToLeft,
        25..28 => TextKind::Empty,
        28 => TextKind::Longest,
        _ => TextKind::Plain,
    }
}

/// A written text of this kind; `language` is a number that the conversation keeps.
pub(crate) fn written(kind: TextKind, language: usize, random: &mut ChaCha8Rng) -> String {
    match kind {
        TextKind::Plain => spoken(language, random),
        TextKind::Emoji => {
            let mut text = spoken(language, random);
            for _ in 0..random.random_range(1..5) {
                text.push(' ');
                text.push_str(pick(EMOJI, random));
            }
            text
        }
        TextKind::Lines => {
            let (one, two) = (spoken(language, random), spoken(language, random));
            format!("{one}\n\n\t1) {two}\r\n\t2) C:\\temp\\\"new\" file, 100 %\n")
        }
        TextKind::RightToLeft => pick(RIGHT_TO_LEFT, random).to_owned(),
        TextKind::Empty => String::new(),
        TextKind::Longest => {
            let mut text = String::new();
            let mut left = MAX_TEXT_CHARS;
            while left > 0 {
                let sentence = format!("{} ", pick(sentences(language), random));
                let taken: String = sentence.chars().take(left).collect();
                left -= taken.chars().count();
                text.push_str(&taken);
            }
            text
        }
    }
}

/// One to four sentences, as they are said on the phone.
pub(crate) fn spoken(language: usize, random: &mut ChaCha8Rng) -> String {
    let count = random.random_range(1..=4);
    let chosen: Vec<&str> = (0..count)
        .map(|_| pick(sentences(language), random))
        .collect();
    chosen.join(" ")
}

/// How many languages there are.
pub(crate) fn languages() -> usize {
    LANGUAGES.len()
}

fn sentences(language: usize) -> &'static [&'static str] {
    LANGUAGES[language % LANGUAGES.len()]
}

fn pick(from: &[&'static str], random: &mut ChaCha8Rng) -> &'static str {
    from.choose(random)
        .expect("the lists of this file are not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_text_has_exactly_its_length_in_every_language() {
        let mut random = crate::emulator::seeds::generator(1, 0);
        for language in 0..languages() {
            let text = written(TextKind::Longest, language, &mut random);
            assert_eq!(text.chars().count(), MAX_TEXT_CHARS);
        }
    }

    #[test]
    fn every_language_has_a_code() {
        assert_eq!(CODES.len(), languages());
    }

    #[test]
    fn no_sentence_is_empty_or_ends_in_space() {
        for sentence in LANGUAGES.iter().copied().flatten().chain(RIGHT_TO_LEFT) {
            assert_eq!(sentence.trim(), *sentence);
            assert!(!sentence.is_empty());
        }
    }
}
