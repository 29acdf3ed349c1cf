use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Gives what it has in pieces; a piece that is empty is a pause.
struct Pieces(VecDeque<Vec<u8>>);

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.0.front_mut() else { return Ok(0) };
        if piece.is_empty() {
            self.0.pop_front();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            self.0.pop_front();
        }
        Ok(count)
    }
}

fn cut(bytes: &[u8], sizes: &[usize]) -> Pieces {
    let (mut pieces, mut rest) = (VecDeque::new(), bytes);
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        pieces.push_back(piece.to_vec());
        rest = after;
        if rest.is_empty() {
            return Pieces(pieces);
        }
    }
    unreachable!()
}

/// Reads to the end: every message, and the error that ended it.
fn read_all(mut source: Pieces) -> (Vec<(u8, Vec<u8>)>, WireError) {
    let (mut reader, mut messages) = (FrameReader::new(), Vec::new());
    loop {
        match reader.next(&mut source) {
            Ok(kind) => messages.push((kind, reader.body().to_vec())),
            Err(error) if error.is_pause() => assert!(reader.body().is_empty()),
            Err(error) => return (messages, error),
        }
        let limit = HEADER_BYTES + LONG_BYTES_MAX;
        assert!(reader.buffer.len() <= limit.max(BUFFER_BYTES));
    }
}

fn message() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let long = (0..2_000_000usize, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]);
    prop_oneof![
        8 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)),
        1 => (Just(tag::COPY_DATA), long),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Law: however the stream is cut and interrupted, the messages come out as they went in.
    #[test]
    fn cuts_and_pauses_change_nothing(
        messages in prop::collection::vec(message(), 0..12),
        mut sizes in prop::collection::vec(0usize..100_000, 1..8),
    ) {
        sizes.push(70_000);
        let mut bytes = Vec::new();
        for (kind, body) in &messages {
            append(&mut bytes, *kind, |into| into.extend_from_slice(body));
        }
        let (read, end) = read_all(cut(&bytes, &sizes));
        prop_assert_eq!(read, messages);
        let is_end = matches!(end, WireError::Closed);
        prop_assert!(is_end);
    }

    /// Law: nonsense ends with an error, without a panic and without more room than allowed.
    #[test]
    fn nonsense_ends_with_an_error(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let (read, end) = read_all(cut(&bytes, &[1000]));
        prop_assert!(read.iter().all(|(_, body)| body.len() < bytes.len()));
        let is_known = matches!(end, WireError::Closed | WireError::Length { .. });
        prop_assert!(is_known);
    }
}

#[test]
fn a_claimed_length_takes_no_room_before_its_bytes_come() {
    let mut bytes = vec![tag::COPY_DATA];
    bytes.extend_from_slice(&(LONG_BYTES_MAX as i32 + 4).to_be_bytes());
    bytes.extend_from_slice(&[7; 100]);
    let mut reader = FrameReader::new();
    let end = reader.next(&mut cut(&bytes, &[50])).unwrap_err();
    assert!(matches!(end, WireError::Closed));
    assert_eq!(reader.buffer.len(), BUFFER_BYTES);
}

#[test]
fn impossible_lengths_are_refused_at_once() {
    for (kind, length) in [
        (tag::COPY_DATA, LONG_BYTES_MAX as i32 + 5),
        (tag::READY, SHORT_BYTES_MAX as i32 + 5),
        (tag::READY, 3),
        (tag::READY, -1),
        (tag::COPY_DATA, i32::MAX),
    ] {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&length.to_be_bytes());
        let (read, end) = read_all(cut(&bytes, &[5]));
        assert!(read.is_empty());
        assert!(matches!(end, WireError::Length { .. }), "{kind} {length}: {end}");
    }
}
