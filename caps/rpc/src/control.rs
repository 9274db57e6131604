//! The control socket: how the kernel hands a running vat new descriptors.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use distos_abi::Fault;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::boot::EdgeEnd;

/// Longest control message.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Sends one end of an edge and its descriptor. Called by the kernel; never blocks: a vat whose
/// queue is full is not reading, and the caller treats it as dead.
pub fn send_edge(control: &OwnedFd, edge: &EdgeEnd, descriptor: &OwnedFd) -> Result<(), Fault> {
    let text = serde_json::to_vec(edge).map_err(Fault::internal)?;
    let descriptors = [std::os::fd::AsFd::as_fd(descriptor)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Fault::internal("no room for a descriptor"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(control, &[std::io::IoSlice::new(&text)], &mut ancillary, flags)
        .map_err(|e| Fault::unavailable(200, format!("a vat does not take its edges: {e}")))?;
    Ok(())
}

/// The vat's end. The socket keeps message boundaries; tokio's datagram type only waits on it.
pub(crate) struct Control {
    socket: UnixDatagram,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> std::io::Result<Control> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Control { socket: UnixDatagram::from_std(socket)? })
    }

    /// The next edge; `None` once the kernel has closed the socket.
    pub(crate) async fn next(&self) -> std::io::Result<Option<(EdgeEnd, OwnedFd)>> {
        self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await
    }
}

fn receive(socket: &UnixDatagram) -> std::io::Result<Option<(EdgeEnd, OwnedFd)>> {
    let mut bytes = [0u8; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptor = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| std::io::Error::other("a control message carries no descriptor"))?;
    let edge = serde_json::from_slice(&bytes[..received.bytes])?;
    Ok(Some((edge, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[tokio::test]
    async fn a_restarted_peer_gets_a_fresh_edge() {
        let (kernel, vat) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let edge = EdgeEnd { name: "memory".into(), peer: "memory".into(), fd: -1, grant: None };
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        send_edge(&kernel, &edge, &file).unwrap();
        drop(kernel);
        let control = Control::new(vat).unwrap();
        let (got, descriptor) = control.next().await.unwrap().unwrap();
        assert_eq!(got.name, "memory");
        assert_eq!(
            rustix::fs::fstat(&descriptor).unwrap().st_ino,
            rustix::fs::fstat(&file).unwrap().st_ino
        );
        assert!(control.next().await.unwrap().is_none());
    }
}
