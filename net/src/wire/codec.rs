//! The incremental codec: bytes in as they arrive, whole checked frames out.
//!
//! A frame that lies whole in the bytes just received is handed out from there; only a frame that is split over receives
//! is gathered, once, in the decoder's own memory, which is given back when the frame is done.

use crate::wire::header::{FrameError, HEADER_BYTES, Header, Kind};
use slotcast_engine::id::SlotId;

/// A frame: type known, checksum right, body not looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its type.
    pub kind: Kind,
    /// Its flags.
    pub flags: u8,
    /// The slot it concerns.
    pub slot: SlotId,
    /// Header and body.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The body, with its padding.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Reads one whole frame at the start of `bytes`; `None` if it is not all there.
    pub fn read(bytes: &'a [u8], limit: usize) -> Result<Option<Self>, FrameError> {
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let header = Header::read(bytes, limit)?;
        let Some(bytes) = bytes.get(..header.len) else { return Ok(None) };
        let kind = header.check(bytes)?;
        Ok(Some(Self { kind, flags: header.flags, slot: header.slot, bytes }))
    }
}

/// Takes a byte stream apart.
#[derive(Default)]
pub struct Decoder {
    partial: Vec<u8>,
}

impl Decoder {
    /// Hands every frame that `bytes` complete to `on_frame`, in order. After an error the stream is lost: the connection
    /// is to be closed.
    pub fn feed<E: From<FrameError>>(
        &mut self,
        mut bytes: &[u8],
        limit: usize,
        mut on_frame: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            let needed = self.needed(limit)? - self.partial.len();
            let (taken, rest) = bytes.split_at(needed.min(bytes.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            if let Some(frame) = Frame::read(&self.partial, limit)? {
                on_frame(frame)?;
                self.partial = Vec::new();
            }
        }
        while let Some(frame) = Frame::read(bytes, limit)? {
            bytes = &bytes[frame.bytes.len()..];
            on_frame(frame)?;
        }
        if !bytes.is_empty() {
            let expected = if bytes.len() < HEADER_BYTES {
                HEADER_BYTES
            } else {
                // A length is only a claim until its bytes are there: grow with them, not ahead of them.
                Header::read(bytes, limit)?.len.min(bytes.len().max(4096) * 2)
            };
            self.partial = Vec::with_capacity(expected);
            self.partial.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Bytes of an unfinished frame that are held.
    pub fn held(&self) -> usize {
        self.partial.len()
    }

    fn needed(&self, limit: usize) -> Result<usize, FrameError> {
        if self.partial.len() < HEADER_BYTES {
            return Ok(HEADER_BYTES);
        }
        Ok(Header::read(&self.partial, limit)?.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::header::{FRAME_BYTES_MAX, write_frame};

    fn frames() -> Vec<u8> {
        let mut out = Vec::new();
        for len in [0usize, 1, 16, 500, 70_000] {
            write_frame(&mut out, Kind::Ping, SlotId(3), |body| {
                body.extend((0..len).map(|i| i as u8));
                0
            });
        }
        out
    }

    fn collect(decoder: &mut Decoder, bytes: &[u8], seen: &mut Vec<Vec<u8>>) -> Result<(), FrameError> {
        decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            seen.push(frame.bytes.to_vec());
            Ok(())
        })
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let stream = frames();
        for step in [1usize, 7, 15, 16, 17, 1000, stream.len()] {
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for chunk in stream.chunks(step) {
                collect(&mut decoder, chunk, &mut seen).unwrap();
            }
            assert_eq!(seen.concat(), stream, "step {step}");
            assert_eq!((seen.len(), decoder.held()), (5, 0));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let mut stream = Vec::new();
        write_frame(&mut stream, Kind::Ping, SlotId(3), |body| {
            body.extend([7; 40]);
            0
        });
        for bit in 0..stream.len() * 8 {
            let mut broken = stream.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let mut seen = Vec::new();
            let result = collect(&mut Decoder::default(), &broken, &mut seen);
            assert!(result.is_err() || seen.is_empty(), "bit {bit}");
        }
    }

    #[test]
    fn an_oversize_frame_is_refused_by_its_header_alone() {
        let mut stream = Vec::new();
        write_frame(&mut stream, Kind::Ping, SlotId(3), |body| {
            body.extend([7; 4096]);
            0
        });
        let refused = Decoder::default().feed(&stream[..16], 1024, |_| Ok::<_, FrameError>(()));
        assert_eq!(refused, Err(FrameError::Length { len: 4112, limit: 1024 }));
    }
}
