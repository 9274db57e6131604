//! A holder that speaks to a node by itself, as an application does, rather than by commands.

use std::fs;
use std::future::Future;
use std::path::PathBuf;

use capnp::capability::FromClientHook;
use distos_abi::Fault;
use distos_client::Connection;
use distos_types::{CapFile, Chain, HolderSecret};

use crate::Node;

/// Runs `work` to its end on this thread.
pub fn in_this_process<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("an event loop");
    runtime.block_on(tokio::task::LocalSet::new().run_until(work))
}

/// Who acts: a capability file, its key, and where the node's sockets are.
#[derive(Clone)]
pub struct Holder {
    sockets: PathBuf,
    file: CapFile,
    key_text: String,
}

impl Holder {
    /// Reads NAME.cap and NAME.key in [`Node::work`].
    ///
    /// # Panics
    /// They are not there, or are broken.
    pub fn load(node: &Node, name: &str) -> Holder {
        let text = |ending| {
            let path = node.file(&format!("{name}.{ending}"));
            fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let file = CapFile::parse(&text("cap")).expect("a capability file");
        Holder { sockets: node.directory().join("run"), file, key_text: text("key") }
    }

    /// Its secret key.
    ///
    /// # Panics
    /// The key file is broken.
    pub fn secret(&self) -> HolderSecret {
        HolderSecret::from_file_text(&self.key_text).expect("a secret key")
    }

    /// The sturdy capability that its file has under this name.
    ///
    /// # Panics
    /// There is none.
    pub fn chain(&self, entry: &str) -> &Chain {
        let found = self.file.find(entry);
        &found.unwrap_or_else(|| panic!("the file has no '{entry}'")).chain
    }

    /// A connection of its own to a service.
    ///
    /// # Errors
    /// Nobody listens.
    async fn connect(&self, service: &str) -> Result<Connection, Fault> {
        Connection::open(&self.sockets.join(format!("{service}.sock"))).await
    }

    /// A live capability, over a connection of its own.
    ///
    /// # Errors
    /// The service does not answer, or refuses.
    pub async fn restore<T: FromClientHook>(
        &self,
        chain: &Chain,
    ) -> Result<(Connection, T), Fault> {
        let connection = self.connect(chain.root().vat.as_str()).await?;
        let live = connection.restore(chain, &self.secret()).await?;
        Ok((connection, live))
    }
}
