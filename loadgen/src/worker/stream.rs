//! Cuts what a connection receives into frames, without looking into them.
//!
//! A frame that lies whole in the bytes received is handed out from there; only a split one is gathered.

use slotcast_net::wire::header::{FRAME_BYTES_MAX, HEADER_BYTES};

/// A length that no frame can have: the stream is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Garbled;

/// The unfinished frame of one connection.
#[derive(Default)]
pub struct Stream {
    partial: Vec<u8>,
}

impl Stream {
    /// The frames that lie whole in `bytes`, if a frame begins with them.
    pub fn whole<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let mut rest = if self.partial.is_empty() { bytes } else { &[] };
        std::iter::from_fn(move || {
            let len = rest.first_chunk::<4>().and_then(|_| length(rest).ok())?;
            let (frame, behind) = rest.split_at_checked(len)?;
            rest = behind;
            Some(frame)
        })
    }

    /// Hands every frame that `bytes` complete to `on_frame`, in order.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(&[u8])) -> Result<(), Garbled> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            let whole = if self.partial.len() < 4 { 4 } else { length(&self.partial)? };
            let (taken, rest) = bytes.split_at((whole - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            if self.partial.len() >= HEADER_BYTES && self.partial.len() == length(&self.partial)? {
                on_frame(&self.partial);
                self.partial = Vec::new();
            }
        }
        while bytes.len() >= 4 {
            let Some((frame, rest)) = bytes.split_at_checked(length(bytes)?) else { break };
            on_frame(frame);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

fn length(bytes: &[u8]) -> Result<usize, Garbled> {
    let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let is_possible = (HEADER_BYTES..=FRAME_BYTES_MAX).contains(&len) && len.is_multiple_of(16);
    if is_possible { Ok(len) } else { Err(Garbled) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> = [16u32, 32, 160, 5008]
            .iter()
            .map(|&len| {
                let mut frame = len.to_le_bytes().to_vec();
                frame.resize(len as usize, len as u8);
                frame
            })
            .collect();
        let whole = frames.concat();
        for step in [1, 3, 16, 17, 100, whole.len()] {
            let (mut stream, mut seen) = (Stream::default(), Vec::new());
            for chunk in whole.chunks(step) {
                stream.feed(chunk, |frame| seen.push(frame.to_vec())).unwrap();
            }
            assert_eq!(seen, frames, "step {step}");
            assert!(stream.partial.is_empty());
        }
        assert_eq!(Stream::default().whole(&whole[..whole.len() - 1]).collect::<Vec<_>>(), frames[..3]);
        let mut stream = Stream::default();
        stream.feed(&whole[..5], |_| ()).unwrap();
        assert_eq!(stream.whole(&whole).count(), 0, "they begin in the middle of one");
    }

    #[test]
    fn an_impossible_length_ends_the_stream() {
        for len in [0u32, 15, 17, u32::MAX] {
            assert_eq!(Stream::default().feed(&len.to_le_bytes(), |_| ()), Err(Garbled));
        }
    }
}
