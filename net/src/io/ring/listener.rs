//! Making TCP sockets: listeners that are alone on their port, and sockets about to connect.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::RingConfig;

/// A listening socket of a ring set. Children inherit its options.
pub(super) fn listen(addr: SocketAddr, config: &RingConfig) -> io::Result<TcpListener> {
    let socket = stream_socket(addr, config)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into()).map_err(|error| context(error, "binding", addr))?;
    socket.listen(backlog(config)).map_err(|error| context(error, "listening on", addr))?;
    Ok(socket.into())
}

/// Listeners that share one port among `count` ring sets of this process, one each for [`super::RingSockets::listen_on`].
///
/// The first claims the port before it allows sharing, so the call fails with `AddrInUse` where anyone listens already,
/// and so does whoever claims the port this way, or through [`super::Sockets::listen`], after it. What it cannot keep out
/// is a foreign program of the same user that binds with port sharing from the start.
pub fn listen_group(addr: SocketAddr, count: usize, config: &RingConfig) -> io::Result<Vec<TcpListener>> {
    let first = stream_socket(addr, config)?;
    first.set_reuse_address(true)?;
    first.bind(&addr.into()).map_err(|error| context(error, "binding", addr))?;
    let bound = first.local_addr()?;
    first.set_reuse_port(true)?;
    let mut group = vec![first];
    while group.len() < count {
        let socket = stream_socket(addr, config)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound).map_err(|error| context(error, "joining", addr))?;
        group.push(socket);
    }
    for socket in &group {
        socket.listen(backlog(config)).map_err(|error| context(error, "listening on", addr))?;
    }
    Ok(group.into_iter().map(TcpListener::from).collect())
}

/// Of the listeners that share a port, makes this one take the connections whose packets are handled on `cpu`; those of a CPU that
/// no listener names are spread as ever. Kernels before 6.2 do so with all.
pub fn accept_from_cpu(listener: &TcpListener, cpu: usize) -> io::Result<()> {
    SockRef::from(listener).set_cpu_affinity(cpu)
}

/// A socket about to connect, bound to `source` without choosing its port yet, so ports are per destination.
pub(super) fn dial(target: SocketAddr, source: Option<IpAddr>, config: &RingConfig) -> io::Result<Socket> {
    let socket = stream_socket(target, config)?;
    if let Some(source) = source {
        bind_address_no_port(&socket)?;
        let source = SocketAddr::new(source, 0);
        socket.bind(&source.into()).map_err(|error| context(error, "binding the source", source))?;
    }
    Ok(socket)
}

/// Makes the close of an ordinary descriptor a reset.
pub(super) fn reset_on_close(fd: &impl std::os::fd::AsFd) -> io::Result<()> {
    SockRef::from(fd).set_linger(Some(std::time::Duration::ZERO))
}

/// Blocking on purpose: the ring waits for readiness by itself, and would report `EAGAIN` for a non-blocking connect.
fn stream_socket(addr: SocketAddr, config: &RingConfig) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = config.send_buffer_bytes {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = config.recv_socket_buffer_bytes {
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(name) = &config.congestion_control {
        socket.set_tcp_congestion(name.as_bytes()).map_err(|error| {
            io::Error::new(error.kind(), format!("no TCP congestion control {name:?} here: {error}"))
        })?;
    }
    Ok(socket)
}

fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option reads one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn backlog(config: &RingConfig) -> i32 {
    i32::try_from(config.listen_backlog).unwrap_or(i32::MAX)
}

fn context(error: io::Error, doing: &str, addr: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {addr}: {error}"))
}
