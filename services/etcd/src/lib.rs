//! Keeps what a cluster agrees on in [etcd](https://etcd.io), for nodes that share one: a [`ClusterState`] like that
//! which its nodes keep by telling one another.
//!
//! The store is trusted with nothing. What is in it is signed by the cluster's root and its voters; whoever may write
//! to it can withhold something and change nothing, and what they spoil is mended by whoever has it. It is read with a
//! majority of its members behind it, and something is replaced only if it is still what was seen.
//!
//! This is no vat: `distos network share`, a program of the operator's, carries what this machine's node has heard to
//! the store and back, with a capability that can do nothing else. Connections are TLS with certificates on both sides
//! (N1).
//!
//! Source: etcd's API v3 (etcdserverpb.KV, Watch), by the `etcd-client` crate.
#![forbid(unsafe_code)]

mod mirror;

use std::collections::BTreeMap;
use std::time::Duration;

use distos_abi::{Fault, NodeId};
use distos_identity::ClusterName;
use distos_membership::{Cast, ClusterState, Known, Members, PAGE, Place, Signed, Summary};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions,
    Identity, KvClient, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use zeroize::Zeroizing;

use crate::mirror::{Mirror, Write};

/// How long the store may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked whether a majority of the store is there; and how often, and for how long, whether the
/// connection is.
const LOOK: Duration = Duration::from_secs(5);
const PING: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(3));
/// Writes in one transaction: etcd takes 128 operations.
const BATCH: usize = 100;

/// How to reach a store.
pub struct Access {
    /// The certificate, in PEM, of whoever vouches for the store's members.
    pub authority: Vec<u8>,
    /// The certificate of whoever asks, in PEM.
    pub certificate: Vec<u8>,
    /// Its private key, in PEM.
    pub key: Zeroizing<Vec<u8>>,
}

/// A cluster's state in etcd, over a connection to one of its members.
pub struct EtcdState {
    client: KvClient,
    watch: WatchStream,
    mirror: Mirror,
}

impl EtcdState {
    /// Connects to a member of the store at `endpoint` (`https://HOST:PORT`), and reads what is there.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if it is no address of that kind; [`Fault::Unauthenticated`] if the store lets nobody do
    /// this who has that certificate; [`Fault::Unavailable`] if no majority of the store is reached.
    pub async fn open(
        endpoint: &str,
        access: &Access,
        cluster: &ClusterName,
    ) -> Result<EtcdState, Fault> {
        if !endpoint.starts_with("https://") {
            let why =
                format!("{endpoint}: a store is reached at https://HOST:PORT, and not in the open");
            return Err(Fault::Malformed(why));
        }
        let own = Identity::from_pem(&access.certificate, &access.key);
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&access.authority))
            .identity(own);
        let options = ConnectOptions::new()
            .with_tls(tls)
            .with_connect_timeout(ANSWER_WAIT)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let client = in_time(Client::connect([endpoint], Some(options))).await?;
        let mut mirror = Mirror::new(cluster);
        let mut keys = client.kv_client();
        let revision = read(&mut keys, &mut mirror).await?;
        let watching = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let watch = client.watch_client().watch(mirror.prefix(), Some(watching)).await;
        let watch = watch.map_err(fault_of)?;
        Ok(EtcdState { client: keys, watch, mirror })
    }

    /// Takes in what was written to the store.
    fn note(&mut self, response: &etcd_client::WatchResponse) -> Result<(), Fault> {
        if response.canceled() {
            let why =
                format!("etcd tells no more of what is written: {}", response.cancel_reason());
            return Err(Fault::unavailable(1000, why));
        }
        for event in response.events() {
            let Some(written) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => {
                    self.mirror.put(written.key(), written.value(), written.mod_revision());
                }
                EventType::Delete => self.mirror.delete(written.key()),
            }
        }
        Ok(())
    }

    /// Writes what has not been written meanwhile by others; of what has, they will be heard.
    async fn write(&mut self, also: &[Compare], writes: &[Write]) -> Result<(), Fault> {
        for batch in writes.chunks(BATCH) {
            if self.write_at_once(also, batch).await? {
                continue;
            }
            // One that others have written is no reason for the rest not to be.
            for write in batch {
                self.write_at_once(also, std::slice::from_ref(write)).await?;
            }
        }
        Ok(())
    }

    async fn write_at_once(&mut self, also: &[Compare], writes: &[Write]) -> Result<bool, Fault> {
        let unchanged = |write: &Write| {
            Compare::mod_revision(write.key.clone(), CompareOp::Equal, write.instead_of)
        };
        let unchanged: Vec<Compare> =
            also.iter().cloned().chain(writes.iter().map(unchanged)).collect();
        let operation = |write: &Write| match &write.value {
            Some(value) => TxnOp::put(write.key.clone(), value.clone(), None),
            None => TxnOp::delete(write.key.clone(), None),
        };
        let operations: Vec<TxnOp> = writes.iter().map(operation).collect();
        let written = self.client.txn(Txn::new().when(unchanged).and_then(operations));
        Ok(in_time(written).await?.succeeded())
    }

    /// Removes votes that count for nobody who goes by the configuration that is there.
    ///
    /// # Errors
    /// As those of [`ClusterState`].
    pub async fn tidy(&mut self, members: &Members) -> Result<(), Fault> {
        let (revision, useless) = self.mirror.useless(members);
        if useless.is_empty() {
            return Ok(());
        }
        let key = self.mirror.configuration_key();
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
        self.write(&[unchanged], &useless).await
    }
}

impl ClusterState for EtcdState {
    async fn known(&mut self) -> Result<Known, Fault> {
        Ok(self.mirror.known())
    }

    async fn configuration(&mut self) -> Result<Option<Signed>, Fault> {
        Ok(self.mirror.see_configuration())
    }

    async fn votes(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Place>,
    ) -> Result<(Vec<Cast>, Option<Place>), Fault> {
        Ok(self.mirror.see_votes(known, after))
    }

    async fn leave(&mut self, configuration: Option<&Signed>, votes: &[Cast]) -> Result<(), Fault> {
        let writes = self.mirror.writes(configuration, votes);
        self.write(&[], &writes).await
    }

    async fn changed(&mut self, _: &Summary) -> Result<(), Fault> {
        match tokio::time::timeout(LOOK, self.watch.message()).await {
            Ok(message) => {
                let over = || Fault::unavailable(1000, "etcd tells no more of what is written");
                let message = message.map_err(fault_of)?.ok_or_else(over)?;
                self.note(&message)
            }
            // Silence says nothing: a member that is cut off from the others hears nothing either.
            Err(_) => {
                let look = GetOptions::new().with_keys_only();
                in_time(self.client.get(self.mirror.configuration_key(), Some(look))).await?;
                Ok(())
            }
        }
    }
}

/// Reads all that is there, as of one revision, page by page; that revision.
async fn read(client: &mut KvClient, mirror: &mut Mirror) -> Result<i64, Fault> {
    let begin = mirror.prefix().as_bytes().to_vec();
    // The first name behind all that begin so.
    let mut end = begin.clone();
    end.pop();
    end.push(b'/' + 1);
    let (mut from, mut revision) = (begin, 0);
    loop {
        // The first page is read with a majority behind it, and the others as of then.
        let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE as i64);
        let options = options.with_revision(revision);
        let page = in_time(client.get(from, Some(options))).await?;
        if revision == 0 {
            let header = page.header().map(etcd_client::ResponseHeader::revision);
            revision = header.ok_or_else(|| Fault::malformed("etcd says no revision"))?;
        }
        for found in page.kvs() {
            mirror.put(found.key(), found.value(), found.mod_revision());
        }
        let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok(revision) };
        from = [last.key(), &[0]].concat();
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(fault_of),
        Err(_) => {
            let why = format!(
                "etcd has not answered for {} s: no majority of it, or the network",
                ANSWER_WAIT.as_secs()
            );
            Err(Fault::unavailable(1000, why))
        }
    }
}

/// What is wrong, with all that lies behind it: that a certificate was refused shows there.
fn fault_of(error: Error) -> Fault {
    let mut why = error.to_string();
    let mut behind = std::error::Error::source(&error);
    while let Some(cause) = behind {
        let cause_text = cause.to_string();
        if !why.contains(&cause_text) {
            why = format!("{why}: {cause_text}");
        }
        behind = cause.source();
    }
    let why = format!("etcd: {why}");
    // gRPC's numbers: 7 is "permission denied", 16 "unauthenticated".
    match error {
        Error::GRpcStatus(status) if [7, 16].contains(&(status.code() as i32)) => {
            Fault::Unauthenticated(why)
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) => Fault::Malformed(why),
        _ => Fault::unavailable(1000, why),
    }
}
