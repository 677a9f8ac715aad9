//! A connection: one thread that reads frames, one that writes them.

use super::*;

impl Out {
    pub(super) fn start(stream: TcpStream, peer: Peer, events: SyncSender<Event>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let (queue, queued) = sync_channel::<Vec<u8>>(QUEUE);
        let (mut reader, mut writer) = (stream.try_clone()?, stream.try_clone()?);
        thread::spawn(move || {
            let sent = queued.iter().try_for_each(|frame| writer.write_all(&frame));
            let _ = writer.shutdown(if sent.is_ok() { Shutdown::Write } else { Shutdown::Both });
        });
        thread::spawn(move || {
            let fault = read_frames(&mut reader, peer, &events);
            let _ = events.send(Event::Gone(peer, fault));
        });
        Ok(Self { queue, stream })
    }

    /// Queues a frame. `false`: there is no room, and the connection is cut.
    pub(super) fn send(&self, frame: Vec<u8>) -> bool {
        let taken = self.queue.try_send(frame).is_ok();
        if !taken {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        taken
    }
}

fn read_frames(stream: &mut TcpStream, peer: Peer, events: &SyncSender<Event>) -> Option<FrameError> {
    let limit = if matches!(peer, Peer::Client(_)) { CLIENT_FRAME_BYTES_MAX } else { FRAME_BYTES_MAX };
    let (mut decoder, mut bytes) = (Decoder::default(), vec![0; 64 * 1024]);
    while let Ok(got @ 1..) = stream.read(&mut bytes) {
        let fed = decoder.feed(&bytes[..got], limit, |frame| {
            let _ = events.send(Event::Frame(peer, frame.bytes.to_vec()));
            Ok(())
        });
        if let Err(fault) = fed {
            return Some(fault);
        }
    }
    None
}

pub(super) fn frame_of(message: &Message<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.write(&mut frame);
    frame
}
