//! The native client: publishes, subscribes, reconnects by itself and resumes by revision.
//!
//! ```no_run
//! use slotcast_net::client::{Client, ClientConfig, Update};
//! use slotcast_engine::id::DataId;
//!
//! let client = Client::connect(ClientConfig::new(["127.0.0.1:7600".parse()?]))?;
//! let checkout = DataId::new("public", "default", "checkout")?;
//! let registration = client.publish(&checkout, "host-1", "eu-1", b"10.0.0.1:8080")?;
//! client.subscribe(&checkout)?;
//! for update in client.updates() {
//!     println!("{update:?}");
//! }
//! client.unpublish(registration)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod state;
mod subscription;

mod persistent;

mod handle;

pub use handle::{Client, ClientError};
pub use state::{ClientConfig, ClientState, Registration, Update};
