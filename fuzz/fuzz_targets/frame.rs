//! A connection of either role is fed any octets, whole and in pieces: the outcome must be the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use resound::proto::{
    Codecs, Connection, Handler, Limits, Message, Opcode, ProtocolError, Replies, Reply, State,
};

const LIMITS: Limits = Limits { message_size_max: 1 << 16, fragments_max: 16, inflate_octets_max: 1 << 20 };

struct Seen {
    messages: Vec<(Opcode, Vec<u8>)>,
    reply: Reply,
}

impl Handler for Seen {
    fn message(&mut self, message: Message<'_>) -> Reply {
        if message.opcode() == Opcode::Text {
            std::str::from_utf8(message.payload()).expect("text is UTF-8");
        }
        assert!(message.payload().len() as u64 <= LIMITS.message_size_max);
        self.messages.push((message.opcode(), message.payload().to_vec()));
        self.reply
    }
}

type Outcome = (Vec<u8>, Vec<(Opcode, Vec<u8>)>, Result<(), ProtocolError>, State);

fn run(is_client: bool, input: &[u8], piece_len: usize) -> Outcome {
    let mut connection = if is_client { Connection::client(1) } else { Connection::server() };
    let reply = if is_client { Reply::Nothing } else { Reply::Echo };
    let mut seen = Seen { messages: Vec::new(), reply };
    let (mut replies, mut sent, mut result) = (Replies::default(), Vec::new(), Ok(()));
    for piece in input.chunks(piece_len) {
        let mut buffer = piece.to_vec();
        let outcome =
            connection.receive(&mut buffer, 0, &LIMITS, &mut Codecs::default(), &mut replies, &mut seen);
        result = result.and(outcome.map(|left| assert_eq!(left, 0, "nothing is inflated")));
        sent.extend(replies.to_vec(&buffer));
    }
    (sent, seen.messages, result, connection.state())
}

fuzz_target!(|data: &[u8]| {
    let [mode, input @ ..] = data else { return };
    let (is_client, piece_len) = (mode & 1 == 1, usize::from(mode >> 1) % 32 + 1);
    let whole = run(is_client, input, input.len().max(1));
    assert_eq!(whole, run(is_client, input, piece_len));
});
