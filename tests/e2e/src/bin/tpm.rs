//! A software TPM on a machine whose software was tampered with: swtpm, and somebody who extends
//! registers behind the attestation service's back as soon as a file `extend` is in its directory,
//! which is called `extended` when that is done. It has a line for each: a register, a space, and what is extended, 64
//! hexadecimal digits; an empty one stands for register 4. `distos-e2e-tpm FD`: a kernel starts it in the
//! place of swtpm.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};

use rustix::io::FdFlags;

/// Tag, size and code.
const HEADER_BYTES: usize = 10;
/// No command and no answer is longer.
const MAX_BYTES: usize = 8192;
/// A register that is quoted and that no image is measured into.
const REGISTER: u32 = 4;
const ANYTHING: [u8; 32] = [0xee; 32];
const ASKED: &str = "extend";
const DONE: &str = "extended";

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("distos-e2e-tpm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Hands commands to swtpm and answers back, until one of both ends.
fn serve() -> io::Result<()> {
    let number = std::env::args().nth(1).and_then(|arg| arg.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("there is no descriptor"))?;
    let mut service = UnixStream::from(distos_host::pidns::inherited(number)?);
    let (mut tpm, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut swtpm = Command::new("/usr/bin/swtpm");
    swtpm.args(["socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--fd"]);
    swtpm.arg(theirs.as_raw_fd().to_string()).args(["--flags", "not-need-init,startup-clear"]);
    // It ends when its socket does.
    let _swtpm = swtpm.spawn()?;
    drop(theirs);
    loop {
        let command = message(&mut service)?;
        if fs::exists(ASKED)? {
            for (register, digest) in asked(&fs::read_to_string(ASKED)?)? {
                tpm.write_all(&extension(register, digest))?;
                message(&mut tpm)?;
            }
            fs::rename(ASKED, DONE)?;
        }
        tpm.write_all(&command)?;
        service.write_all(&message(&mut tpm)?)?;
    }
}

/// A command or an answer as a whole.
fn message(from: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES];
    from.read_exact(&mut bytes)?;
    let size = u32::from_be_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]) as usize;
    if !(HEADER_BYTES..=MAX_BYTES).contains(&size) {
        return Err(io::Error::other(format!("a message of {size} bytes")));
    }
    bytes.resize(size, 0);
    from.read_exact(&mut bytes[HEADER_BYTES..])?;
    Ok(bytes)
}

/// What is to be extended into which registers.
fn asked(text: &str) -> io::Result<Vec<(u32, [u8; 32])>> {
    if text.trim().is_empty() {
        return Ok(vec![(REGISTER, ANYTHING)]);
    }
    let one = |line: &str| {
        let (register, digest) = line.split_once(' ')?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest, &mut bytes).ok()?;
        Some((register.parse().ok()?, bytes))
    };
    let all: Option<Vec<_>> = text.lines().map(one).collect();
    all.ok_or_else(|| io::Error::other("a line is no register and digest"))
}

/// `TPM2_PCR_Extend` of a SHA-256 register with an empty password.
fn extension(register: u32, digest: [u8; 32]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(register.to_be_bytes());
    // The authorization: its length, TPM_RS_PW, no nonce, no attributes, no password.
    body.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    // One digest of SHA-256.
    body.extend([0, 0, 0, 1, 0, 0x0b]);
    body.extend(digest);
    let mut command = vec![0x80, 0x02];
    command.extend((HEADER_BYTES as u32 + body.len() as u32).to_be_bytes());
    command.extend(0x0182_u32.to_be_bytes());
    command.extend(body);
    command
}
