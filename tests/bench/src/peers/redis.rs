//! Redis, which answers from memory.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use redis::{Connection, RedisResult};

use super::{Process, until_listening};

/// The same executable as the server, which is one under this name. It comes without the daemon
/// that the server's own package would start.
const PROGRAM: &str = "redis-check-rdb";

/// A server in a process of its own, and a connection to it.
pub struct Peer {
    connection: Connection,
    server: Process,
}

impl Peer {
    /// Starts a server that keeps nothing on disk, in `directory`, and connects to it.
    pub fn start(directory: &Path) -> Result<Peer, Box<dyn std::error::Error>> {
        let socket = directory.join("redis.sock");
        let mut command = Command::new(PROGRAM);
        command.arg0("redis-server").args(["--port", "0", "--save", "", "--appendonly", "no"]);
        command.args(["--daemonize", "no", "--loglevel", "warning", "--unixsocket"]);
        command.arg(&socket).current_dir(directory).stdin(Stdio::null());
        let spawned = command.spawn();
        let mut server = Process(spawned.map_err(|e| format!("{PROGRAM}: {e}: run `make bench`"))?);
        until_listening(&socket, &mut server)?;
        let client = redis::Client::open(format!("redis+unix://{}", socket.display()))?;
        Ok(Peer { connection: client.get_connection()?, server })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    /// Keeps a page.
    pub fn set(&mut self, page: usize, bytes: &[u8]) -> RedisResult<()> {
        redis::cmd("SET").arg(page).arg(bytes).query(&mut self.connection)
    }

    /// Fetches a page.
    pub fn get(&mut self, page: usize) -> RedisResult<Vec<u8>> {
        redis::cmd("GET").arg(page).query(&mut self.connection)
    }
}
