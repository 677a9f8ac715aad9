//! The HTTP side of a process: `/metrics`, `/healthz`, `/readyz` and what operators ask. One tokio thread, never on the hot path.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use anyhow::anyhow;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::oneshot;

use crate::output::why_not_listening;

pub mod control;

/// Says whether the process serves, with what is worth knowing all the same, or what it waits for.
pub type Ready = Arc<dyn Fn() -> Result<Option<String>, String> + Send + Sync>;

#[derive(Clone)]
struct Shown {
    registry: Arc<Mutex<Registry>>,
    ready: Ready,
}

/// A running HTTP server; it ends when this is dropped.
pub struct Admin {
    /// Where it listens.
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Admin {
    /// Binds `addr` and serves `registry`, `ready` and what `operations` routes from a thread of its own.
    pub fn start(
        addr: SocketAddr,
        registry: Registry,
        ready: Ready,
        operations: Router,
    ) -> anyhow::Result<Self> {
        Self::serve(Self::bind(addr)?, registry, ready, operations)
    }

    /// Takes a port, for whoever has to tell it before it is served.
    pub fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
        let listener = TcpListener::bind(addr)
            .map_err(|error| anyhow!("for HTTP: {} ({error})", why_not_listening(addr, error.kind())))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The same as [`Admin::start`] on a port from [`Admin::bind`].
    pub fn serve(
        listener: TcpListener,
        registry: Registry,
        ready: Ready,
        operations: Router,
    ) -> anyhow::Result<Self> {
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shown = Shown { registry: Arc::new(Mutex::new(registry)), ready };
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            let result = runtime.block_on(async move {
                let routes = Router::new()
                    .route("/metrics", get(metrics))
                    .route("/healthz", get(|| async { "ok\n" }))
                    .route("/readyz", get(readyz))
                    .with_state(shown)
                    .merge(operations);
                let serve = axum::serve(tokio::net::TcpListener::from_std(listener)?, routes);
                serve
                    .with_graceful_shutdown(async move {
                        let _ = stopped.await;
                    })
                    .await
            });
            if let Err(error) = result {
                tracing::error!(%error, "the HTTP server ended");
            }
        })?;
        Ok(Self { addr, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn metrics(State(shown): State<Shown>) -> Result<String, StatusCode> {
    let mut text = String::new();
    let registry = shown.registry.lock().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    encode(&mut text, &registry).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(text)
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    match (shown.ready)() {
        Ok(None) => (StatusCode::OK, "ready\n".into()),
        Ok(Some(note)) => (StatusCode::OK, format!("ready; {note}\n")),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
