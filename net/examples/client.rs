//! Registers an instance, subscribes to its service and prints what comes: a snapshot first, then diffs, each with its revision.
//! In another shell `slotcast standalone`, then `cargo run --release -p slotcast-net --example client`; ^C ends it. Another address
//! of a session may be given.

use slotcast_engine::id::DataId;
use slotcast_net::client::{Client, ClientConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7600".into());
    let client = Client::connect(ClientConfig::new([session.parse()?]))?;
    let checkout = DataId::new("public", "default", "checkout")?;
    let _registration = client.publish(&checkout, "host-1", "eu-1", b"10.0.0.1:8080")?;
    client.subscribe(&checkout)?;
    for update in client.updates() {
        println!("{update:?}");
    }
    Ok(())
}
