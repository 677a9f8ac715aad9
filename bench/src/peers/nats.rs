//! NATS: its text protocol, as far as publish and subscribe need it.

use anyhow::{Context, Result, bail};

use super::speech::{Said, Speech, line, message, number};

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false}\r\n";

/// Speaks the text protocol of NATS.
pub struct Nats {
    topics: u32,
    message_bytes: usize,
}

impl Speech for Nats {
    const NAME: &'static str = "NATS";
    const BINARY: Option<(&'static str, &'static str)> = Some(("nats-server", "nats-server"));

    fn arguments(port: u16, _: u32, folder: &str) -> Vec<String> {
        let (port, log) = (port.to_string(), format!("{folder}/log"));
        ["--addr", "127.0.0.1", "--port", &port, "--log", &log].map(String::from).to_vec()
    }

    fn new(topics: u32, message_bytes: usize) -> Result<Self> {
        Ok(Self { topics, message_bytes })
    }

    fn begin(&mut self) -> Result<(Vec<u8>, usize)> {
        Ok((format!("{CONNECT}PING\r\n").into_bytes(), 1))
    }

    fn subscribe(&self, _: u32, topic: u32) -> Result<Vec<u8>> {
        Ok(format!("{CONNECT}SUB topic-{topic} 1\r\nPING\r\n").into_bytes())
    }

    fn publish(&mut self, round: u64) -> Result<Vec<u8>> {
        let (message, mut out) = (message(round, self.message_bytes), Vec::new());
        for topic in 0..self.topics {
            out.extend_from_slice(format!("PUB topic-{topic} {}\r\n", message.len()).as_bytes());
            out.extend_from_slice(&message);
            out.extend_from_slice(b"\r\n");
        }
        Ok(out)
    }

    fn take(bytes: &[u8], on_said: &mut dyn FnMut(Said<'_>)) -> Result<usize> {
        let Some((head, start)) = line(bytes) else { return Ok(0) };
        let word = head.split(|byte| *byte == b' ').next().unwrap_or_default();
        match word {
            b"MSG" => {
                // MSG subject sid [reply-to] bytes
                let len = number(head.rsplit(|byte| *byte == b' ').next().context("a length")?)?;
                let Some(text) = bytes.get(start..start + len + 2) else { return Ok(0) };
                on_said(Said::Message(&text[..len]));
                return Ok(start + len + 2);
            }
            b"PONG" => on_said(Said::Ready),
            b"PING" => on_said(Said::Ask(b"PONG\r\n")),
            b"INFO" | b"+OK" => {}
            _ => bail!("NATS says {:?}", String::from_utf8_lossy(head)),
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::speech::tests::said;

    #[test]
    fn what_nats_says_is_understood_however_it_is_cut() {
        let stream = b"INFO {\"server_id\":\"x\"}\r\n+OK\r\nPONG\r\nMSG topic-0 1 4\r\na\r\nb\r\nPING\r\n\
            MSG topic-0 1 reply 0\r\n\r\n";
        assert_eq!(said::<Nats>(stream), ["ready", "a\r\nb", "ask PONG", ""]);
        assert!(Nats::take(b"-ERR 'Slow Consumer'\r\n", &mut |_| {}).is_err());
        assert!(Nats::take(b"MSG topic-0 1 x\r\n", &mut |_| {}).is_err());
    }

    #[test]
    fn a_publish_is_one_command_per_topic() {
        let text = String::from_utf8(Nats::new(2, 18).unwrap().publish(9).unwrap()).unwrap();
        assert_eq!(text, "PUB topic-0 18\r\n0000000000000009..\r\nPUB topic-1 18\r\n0000000000000009..\r\n");
    }
}
