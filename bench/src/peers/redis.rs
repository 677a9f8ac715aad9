//! Redis: RESP, as far as publish and subscribe need it.

use anyhow::{Context, Result, bail};

use super::speech::{Said, Speech, line, message, number};

/// Speaks RESP.
pub struct Redis {
    topics: u32,
    message_bytes: usize,
}

fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn topic_name(topic: u32) -> String {
    format!("topic-{topic}")
}

/// A bulk string at the start of `bytes`, and its length with all around it.
fn bulk(bytes: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let Some((head, start)) = line(bytes) else { return Ok(None) };
    let len = number(head.strip_prefix(b"$").context("a bulk string was expected")?)?;
    Ok(bytes.get(start..start + len + 2).map(|text| (&text[..len], start + len + 2)))
}

impl Speech for Redis {
    const NAME: &'static str = "Redis";
    const BINARY: Option<(&'static str, &'static str)> = Some(("redis-server", "redis-server"));

    fn arguments(port: u16, subscribers: u32, folder: &str) -> Vec<String> {
        let (port, clients) = (port.to_string(), (subscribers + 64).to_string());
        [
            "--bind",
            "127.0.0.1",
            // Subscribers connect from other loopback addresses.
            "--protected-mode",
            "no",
            "--port",
            &port,
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
            "--daemonize",
            "no",
            "--maxclients",
            &clients,
            "--tcp-backlog",
            "4096",
            "--client-output-buffer-limit",
            "pubsub 0 0 0",
        ]
        .map(String::from)
        .to_vec()
    }

    fn new(topics: u32, message_bytes: usize) -> Result<Self> {
        Ok(Self { topics, message_bytes })
    }

    fn begin(&mut self) -> Result<(Vec<u8>, usize)> {
        let mut out = Vec::new();
        command(&mut out, &[b"PING"]);
        Ok((out, 1))
    }

    fn subscribe(&self, _: u32, topic: u32) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        command(&mut out, &[b"SUBSCRIBE", topic_name(topic).as_bytes()]);
        Ok(out)
    }

    fn publish(&mut self, round: u64) -> Result<Vec<u8>> {
        let (message, mut out) = (message(round, self.message_bytes), Vec::new());
        for topic in 0..self.topics {
            command(&mut out, &[b"PUBLISH", topic_name(topic).as_bytes(), &message]);
        }
        Ok(out)
    }

    fn take(bytes: &[u8], on_said: &mut dyn FnMut(Said<'_>)) -> Result<usize> {
        let Some((head, start)) = line(bytes) else { return Ok(0) };
        match head.first() {
            Some(b'+') => on_said(Said::Ready),
            // How many subscribers a publish reached.
            Some(b':') => {}
            Some(b'*') if head == b"*3" => return take_push(bytes, start, on_said),
            _ => bail!("Redis says {:?}", String::from_utf8_lossy(head)),
        }
        Ok(start)
    }
}

/// `message`, topic, text; or `subscribe`, topic, count.
fn take_push(bytes: &[u8], start: usize, on_said: &mut dyn FnMut(Said<'_>)) -> Result<usize> {
    let Some((kind, kind_len)) = bulk(&bytes[start..])? else { return Ok(0) };
    let Some((_, topic_len)) = bulk(&bytes[start + kind_len..])? else { return Ok(0) };
    let rest = start + kind_len + topic_len;
    if kind == b"subscribe" {
        let Some((_, len)) = line(&bytes[rest..]) else { return Ok(0) };
        on_said(Said::Ready);
        return Ok(rest + len);
    }
    let Some((text, len)) = bulk(&bytes[rest..])? else { return Ok(0) };
    on_said(Said::Message(text));
    Ok(rest + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::speech::tests::said;

    #[test]
    fn what_redis_says_is_understood_however_it_is_cut() {
        let stream = b"+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$7\r\ntopic-0\r\n:1\r\n:25\r\n\
            *3\r\n$7\r\nmessage\r\n$7\r\ntopic-0\r\n$6\r\na\r\nb\r\n\r\n*3\r\n$7\r\nmessage\r\n$7\r\ntopic-0\r\n$0\r\n\r\n";
        assert_eq!(said::<Redis>(stream), ["ready", "ready", "a\r\nb\r\n", ""]);
        assert!(Redis::take(b"-ERR max number of clients reached\r\n", &mut |_| {}).is_err());
        assert!(Redis::take(b"*3\r\n+message\r\n$", &mut |_| {}).is_err());
    }

    #[test]
    fn a_publish_is_one_command_per_topic() {
        let mut redis = Redis::new(2, 20).unwrap();
        let text = String::from_utf8(redis.publish(3).unwrap()).unwrap();
        assert_eq!(
            text,
            "*3\r\n$7\r\nPUBLISH\r\n$7\r\ntopic-0\r\n$20\r\n0000000000000003....\r\n\
             *3\r\n$7\r\nPUBLISH\r\n$7\r\ntopic-1\r\n$20\r\n0000000000000003....\r\n"
        );
    }
}
