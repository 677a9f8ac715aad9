//! The life of a connection on its ring: which operation follows which completion.

use std::{
    io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
};

use io_uring::{
    cqueue, opcode,
    squeue::Flags,
    types::{DestinationSlot, Fd, Fixed},
};
use socket2::SockAddr;

use super::{
    CloseReason, ConnId, Event,
    buffers::GROUP,
    kernel::{Common, Completion, Ring, on_file, send_entry},
    listener,
    slab::{Dialing, File, Ops, State},
    token::{Kind, Token},
};

/// Offset that asks the kernel for any free slot of the file table.
const ANY_SLOT: i32 = -1;

static RESET_ON_CLOSE: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

impl Ring {
    /// Takes over an accepted socket: a table slot or a descriptor, by the mode of the set.
    pub fn adopt(&mut self, file: File, common: &mut Common) -> io::Result<Option<ConnId>> {
        let Some((slot, conn)) = self.slab.insert() else {
            self.discard(file, common)?;
            return Ok(None);
        };
        conn.state = State::Open;
        conn.file = file;
        let generation = conn.generation;
        self.arm_recv(slot, common)?;
        Ok(Some(self.conn_id(slot, generation)))
    }

    /// Closes a file that belongs to no connection.
    pub fn discard(&mut self, file: File, common: &mut Common) -> io::Result<()> {
        match file {
            File::Fixed(slot) => self.push(opcode::Close::new(Fixed(slot)).build(), common),
            File::Ordinary(_) | File::None => Ok(()),
        }
    }

    /// Starts connecting a fresh socket.
    pub fn dial(&mut self, fd: OwnedFd, address: SockAddr, common: &mut Common) -> io::Result<ConnId> {
        let (slot, conn) = self.slab.insert().ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        let generation = conn.generation;
        let mut dialing = Box::new(Dialing { address, fd: fd.as_raw_fd() });
        let fd_cell = &raw mut dialing.fd;
        conn.file = File::Ordinary(fd);
        conn.dialing = Some(dialing);
        if common.features.direct_descriptors {
            conn.state = State::Installing;
            conn.ops |= Ops::INSTALL;
            let token = Token::new(Kind::Install, slot, generation);
            let entry = opcode::FilesUpdate::new(fd_cell.cast_const(), 1).offset(ANY_SLOT).build();
            self.push(entry.user_data(token.encode()), common)?;
        } else {
            self.push_connect(slot, common)?;
        }
        Ok(self.conn_id(slot, generation))
    }

    fn push_connect(&mut self, slot: u32, common: &mut Common) -> io::Result<()> {
        let conn = self.slab.get(slot);
        let Some(dialing) = conn.dialing.as_ref() else { return Ok(()) };
        let (address, len) = (dialing.address.as_ptr().cast::<libc::sockaddr>(), dialing.address.len());
        conn.state = State::Connecting;
        conn.ops |= Ops::CONNECT;
        let token = Token::new(Kind::Connect, slot, conn.generation);
        let entry = on_file!(conn.file.target(), file => opcode::Connect::new(file, address, len).build());
        self.push(entry.user_data(token.encode()), common)
    }

    fn arm_recv(&mut self, slot: u32, common: &mut Common) -> io::Result<()> {
        let conn = self.slab.get(slot);
        conn.ops |= Ops::RECV;
        let token = Token::new(Kind::Recv, slot, conn.generation);
        let target = conn.file.target();
        let entry = if common.features.multishot_recv {
            on_file!(target, file => opcode::RecvMulti::new(file, GROUP).build())
        } else {
            let len = common.config.recv_buffer_bytes;
            on_file!(target, file => opcode::Recv::new(file, std::ptr::null_mut(), len).buf_group(GROUP).build())
                .flags(Flags::BUFFER_SELECT)
        };
        self.push(entry.user_data(token.encode()), common)
    }

    /// Arms the receives that ran out of buffers again, unless filled buffers still wait to be handled.
    pub fn feed_starved(&mut self, common: &mut Common) -> io::Result<()> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        for _ in 0..self.starved.len().min(usize::from(self.buffers.count())) {
            let Some((slot, generation)) = self.starved.pop_front() else { break };
            let Some(conn) = self.slab.live(slot, generation) else { continue };
            if matches!(conn.state, State::Open | State::Draining) {
                self.arm_recv(slot, common)?;
            }
        }
        Ok(())
    }

    /// Ends a connection: cancels what waits, closes the file. `Closed` is reported when all of it has completed.
    pub fn tear_down(
        &mut self,
        slot: u32,
        reason: CloseReason,
        reset: bool,
        common: &mut Common,
    ) -> io::Result<()> {
        let conn = self.slab.get(slot);
        if conn.state == State::Closing {
            return Ok(());
        }
        conn.state = State::Closing;
        conn.reason.get_or_insert(reason);
        let (ops, generation) = (conn.ops, conn.generation);
        for (op, kind) in [(Ops::CONNECT, Kind::Connect), (Ops::RECV, Kind::Recv), (Ops::POLL, Kind::Poll)] {
            if ops.has(op) {
                let waiting = Token::new(kind, slot, generation).encode();
                self.push(opcode::AsyncCancel::new(waiting).build().flags(Flags::SKIP_SUCCESS), common)?;
            }
        }
        if ops.has(Ops::INSTALL) {
            return Ok(());
        }
        if reset {
            self.push_reset(slot, common)?;
        }
        self.push_close(slot, common)
    }

    fn push_reset(&mut self, slot: u32, common: &mut Common) -> io::Result<()> {
        let conn = self.slab.get(slot);
        match &conn.file {
            File::Fixed(file) if common.features.reset_direct => {
                let token = Token::new(Kind::Linger, slot, conn.generation);
                let entry = opcode::SetSockOpt::new(
                    Fixed(*file),
                    libc::SOL_SOCKET as u32,
                    libc::SO_LINGER as u32,
                    (&raw const RESET_ON_CLOSE).cast(),
                    size_of::<libc::linger>() as u32,
                );
                self.push(entry.build().flags(Flags::SKIP_SUCCESS).user_data(token.encode()), common)
            }
            File::Ordinary(fd) => listener::reset_on_close(fd),
            File::Fixed(_) | File::None => {
                common.stats.reset_fallbacks += 1;
                Ok(())
            }
        }
    }

    fn push_close(&mut self, slot: u32, common: &mut Common) -> io::Result<()> {
        let conn = self.slab.get(slot);
        conn.ops |= Ops::CLOSE;
        let token = Token::new(Kind::Close, slot, conn.generation);
        // Closed through the queue in both modes, so that operations queued earlier still find the file they mean.
        let entry = match std::mem::replace(&mut conn.file, File::None) {
            File::Fixed(file) => opcode::Close::new(Fixed(file)).build(),
            File::Ordinary(fd) => opcode::Close::new(Fd(fd.into_raw_fd())).build(),
            File::None => opcode::Nop::new().build(),
        };
        self.push(entry.user_data(token.encode()), common)
    }

    /// Handles one completion of a connection.
    pub fn complete(
        &mut self,
        completion: Completion,
        common: &mut Common,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let Token { kind, slot, generation } = completion.token;
        let Some(conn) = self.slab.live(slot, generation) else {
            return self.ignore(completion, common);
        };
        let conn_state = conn.state;
        match kind {
            Kind::Recv => self.received(completion, common, on_event)?,
            Kind::Send => self.tear_down(slot, CloseReason::from_errno(-completion.result), false, common)?,
            Kind::Poll => {
                conn.ops.remove(Ops::POLL);
                self.writable(completion, common)?;
            }
            Kind::Rest => {
                conn.ops.remove(Ops::REST);
                self.rest_sent(completion, common, on_event)?;
            }
            Kind::Install => {
                conn.ops.remove(Ops::INSTALL);
                self.installed(completion, common)?;
            }
            Kind::Connect => {
                conn.ops.remove(Ops::CONNECT);
                if conn_state == State::Connecting {
                    self.connected(completion, common, on_event)?;
                }
            }
            Kind::Close => conn.ops.remove(Ops::CLOSE),
            Kind::Linger => common.stats.reset_fallbacks += 1,
            Kind::Ignored | Kind::AcceptMulti | Kind::AcceptSingle => {}
        }
        self.release_if_done(slot, common, on_event);
        Ok(())
    }

    /// A completion of a connection that is gone, or of an operation nobody waits for.
    fn ignore(&mut self, completion: Completion, common: &mut Common) -> io::Result<()> {
        if completion.token.kind != Kind::Ignored && completion.token.kind != Kind::Linger {
            common.stats.stale_completions += 1;
        }
        if let Some(buffer) = cqueue::buffer_select(completion.flags) {
            self.buffers.give_back(buffer);
        }
        Ok(())
    }

    fn release_if_done(&mut self, slot: u32, common: &mut Common, on_event: &mut dyn FnMut(Event<'_>)) {
        let conn = self.slab.get(slot);
        if conn.state != State::Closing || conn.ops != Ops::NONE {
            return;
        }
        let reason = conn.reason.unwrap_or(CloseReason::Local);
        let generation = conn.generation;
        self.slab.release(slot);
        common.stats.closed += 1;
        on_event(Event::Closed { conn: self.conn_id(slot, generation), reason });
    }

    fn received(
        &mut self,
        completion: Completion,
        common: &mut Common,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let Completion { token: Token { slot, generation, .. }, result, flags } = completion;
        let id = self.conn_id(slot, generation);
        let conn = self.slab.get(slot);
        let armed = cqueue::more(flags);
        if !armed {
            conn.ops.remove(Ops::RECV);
        }
        let state = conn.state;
        if let Some(buffer) = cqueue::buffer_select(flags) {
            if result > 0 && state == State::Open {
                common.stats.recvs += 1;
                common.stats.recv_bytes += result as u64;
                on_event(Event::Received { conn: id, bytes: self.buffers.filled(buffer, result as usize) });
            }
            self.buffers.give_back(buffer);
        }
        if armed || !matches!(state, State::Open | State::Draining) {
            return Ok(());
        }
        match -result {
            0 => self.tear_down(slot, CloseReason::Eof, false, common),
            libc::ENOBUFS => {
                common.stats.buffer_starved += 1;
                self.starved.push_back((slot, generation));
                Ok(())
            }
            libc::EINVAL if common.features.multishot_recv => {
                tracing::warn!("the kernel refuses multishot receives, using single ones");
                common.features.multishot_recv = false;
                self.arm_recv(slot, common)
            }
            errno if errno < 0 || matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                self.arm_recv(slot, common)
            }
            errno => self.tear_down(slot, CloseReason::from_errno(errno), false, common),
        }
    }

    fn writable(&mut self, completion: Completion, common: &mut Common) -> io::Result<()> {
        let Token { slot, generation, .. } = completion.token;
        let conn = self.slab.get(slot);
        if !matches!(conn.state, State::Open | State::Draining) {
            return Ok(());
        }
        match -completion.result {
            libc::ECANCELED | libc::EINTR => return self.arm_writable(slot, common),
            errno if errno > 0 => return self.tear_down(slot, CloseReason::from_errno(errno), false, common),
            _ => {}
        }
        let Some(rest) = conn.rest.as_ref() else { return Ok(()) };
        let token = Token::new(Kind::Rest, slot, generation);
        let entry = send_entry(conn.file.target(), rest.remaining()).user_data(token.encode());
        conn.ops |= Ops::REST;
        common.stats.sends += 1;
        self.push(entry, common)
    }

    fn rest_sent(
        &mut self,
        completion: Completion,
        common: &mut Common,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let Token { slot, generation, .. } = completion.token;
        let id = self.conn_id(slot, generation);
        let conn = self.slab.get(slot);
        if !matches!(conn.state, State::Open | State::Draining) {
            return Ok(());
        }
        let Some(rest) = conn.rest.as_mut() else { return Ok(()) };
        match completion.result {
            sent if sent >= 0 => rest.advance(sent as usize),
            errno if errno == -libc::EAGAIN || errno == -libc::ENOBUFS || errno == -libc::ENOMEM => {}
            errno => return self.tear_down(slot, CloseReason::from_errno(-errno), false, common),
        }
        if !rest.remaining().is_empty() {
            common.stats.short_sends += 1;
            return self.arm_writable(slot, common);
        }
        conn.rest = None;
        if conn.state == State::Draining {
            return self.tear_down(slot, CloseReason::Local, false, common);
        }
        on_event(Event::Writable { conn: id });
        Ok(())
    }

    fn installed(&mut self, completion: Completion, common: &mut Common) -> io::Result<()> {
        let slot = completion.token.slot;
        let conn = self.slab.get(slot);
        let file = conn.dialing.as_ref().map_or(-1, |dialing| dialing.fd);
        if completion.result == 1 {
            // Dropping the descriptor leaves the table's reference to the socket.
            conn.file = File::Fixed(file as u32);
        }
        match (conn.state, completion.result) {
            (State::Installing, 1) => self.push_connect(slot, common),
            (State::Installing, error) => self.tear_down(
                slot,
                CloseReason::from_errno(if error < 0 { -error } else { libc::ENFILE }),
                false,
                common,
            ),
            _ => self.push_close(slot, common),
        }
    }

    fn connected(
        &mut self,
        completion: Completion,
        common: &mut Common,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let Token { slot, generation, .. } = completion.token;
        let conn = self.slab.get(slot);
        conn.dialing = None;
        if completion.result < 0 {
            return self.tear_down(slot, CloseReason::Error(-completion.result), false, common);
        }
        conn.state = State::Open;
        common.stats.connected += 1;
        on_event(Event::Connected { conn: self.conn_id(slot, generation) });
        self.arm_recv(slot, common)
    }

    /// Queues one accept that ends after one connection.
    pub fn accept_single(&mut self, fd: i32, listener: u32, common: &mut Common) -> io::Result<()> {
        let mut accept = opcode::Accept::new(Fd(fd), std::ptr::null_mut(), std::ptr::null_mut());
        accept = if common.features.direct_descriptors {
            accept.file_index(Some(DestinationSlot::auto_target()))
        } else {
            accept.flags(libc::SOCK_CLOEXEC)
        };
        self.reserved += 1;
        let token = Token::new(Kind::AcceptSingle, listener, 0);
        self.push(accept.build().user_data(token.encode()), common)
    }

    /// Queues an accept that goes on until cancelled or refused.
    pub fn accept_multi(&mut self, fd: i32, listener: u32, common: &mut Common) -> io::Result<()> {
        let direct = common.features.direct_descriptors;
        let accept = opcode::AcceptMulti::new(Fd(fd)).allocate_file_index(direct).flags(if direct {
            0
        } else {
            libc::SOCK_CLOEXEC
        });
        let token = Token::new(Kind::AcceptMulti, listener, 0);
        self.push(accept.build().user_data(token.encode()), common)
    }

    pub fn cancel_accept_multi(&mut self, listener: u32, common: &mut Common) -> io::Result<()> {
        let waiting = Token::new(Kind::AcceptMulti, listener, 0).encode();
        self.push(opcode::AsyncCancel::new(waiting).build().flags(Flags::SKIP_SUCCESS), common)
    }
}
