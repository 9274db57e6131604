//! Keeps what a cluster agrees on in [etcd](https://etcd.io), for nodes that share one: a [`ClusterState`] like that
//! which its nodes keep by telling one another.
//!
//! The store is trusted with nothing. What is in it is signed by the cluster's root, its voters, and those who revoke
//! something; whoever may write
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

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use distos_abi::{Fault, NodeId};
use distos_identity::ClusterName;
use distos_membership::{
    Cast, ClusterState, Known, Mark, Members, Offer, PAGE, Place, Signed, Summary,
};
use distos_types::Revocation;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions,
    Identity, KvClient, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use futures::FutureExt as _;
use zeroize::Zeroizing;

use crate::mirror::{Mirror, Write};

/// How long the store may take to answer, and until all that is there is read.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
const READ_WAIT: Duration = Duration::from_secs(120);
/// How often it is looked whether a majority of the store is there, and how long that may take; how often, and for how
/// long, whether the connection is.
const LOOK: Duration = Duration::from_secs(3);
const LOOK_WAIT: Duration = Duration::from_secs(2);
const PING: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(3));
/// Writes in one transaction: etcd takes 128 operations.
const BATCH: usize = 100;
/// Of what is written, so much is heard at once.
const AT_ONCE: usize = 4096;

/// gRPC's numbers: for an answer that is too large, and for whoever is not let in.
const OUT_OF_RANGE: i32 = 11;
const NOT_LET_IN: [i32; 2] = [7, 16];

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
    /// When a majority of the store was last there.
    looked: Instant,
}

impl EtcdState {
    /// Connects to a member of the store at `endpoint` (`https://HOST:PORT`), and reads what is there; of revocations,
    /// those for `homes`.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if it is no address of that kind; [`Fault::Unauthenticated`] if the store lets nobody do
    /// this who has that certificate; [`Fault::Unavailable`] if no majority of the store is reached.
    pub async fn open(
        endpoint: &str,
        access: &Access,
        cluster: &ClusterName,
        homes: BTreeSet<NodeId>,
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
        let mut mirror = Mirror::new(cluster, homes);
        let mut keys = client.kv_client();
        let all = tokio::time::timeout(READ_WAIT, read(&mut keys, &mut mirror)).await;
        let revision =
            all.unwrap_or_else(|_| Err(Fault::unavailable(1000, "etcd tells too much")))?;
        // In parts, if much is written at once.
        let watching = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let watching = Some(watching.with_fragment());
        let mut watches = client.watch_client();
        let watch = in_time(watches.watch(mirror.prefix(), watching)).await?;
        Ok(EtcdState { client: keys, watch, mirror, looked: Instant::now() })
    }

    /// Whether there was more than is kept in mind. What is useless of it is removed by [`EtcdState::tidy`]; then it is to
    /// be opened again.
    pub fn is_partial(&self) -> bool {
        self.mirror.is_partial()
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

    /// Writes what has not been written meanwhile by others. What has is heard of, and what was to be written together
    /// with it is written the next time.
    async fn write(&mut self, also: &[Compare], writes: &[Write]) -> Result<(), Fault> {
        for batch in writes.chunks(BATCH) {
            let unchanged = |write: &Write| {
                Compare::mod_revision(write.key.clone(), CompareOp::Equal, write.instead_of)
            };
            let unchanged: Vec<Compare> =
                also.iter().cloned().chain(batch.iter().map(unchanged)).collect();
            let operation = |write: &Write| match &write.value {
                Some(value) => TxnOp::put(write.key.clone(), value.clone(), None),
                None => TxnOp::delete(write.key.clone(), None),
            };
            let operations: Vec<TxnOp> = batch.iter().map(operation).collect();
            let written = self.client.txn(Txn::new().when(unchanged).and_then(operations));
            let written = in_time(written).await?;
            if written.succeeded() {
                let revision = written.header().map_or(0, etcd_client::ResponseHeader::revision);
                batch.iter().for_each(|write| self.mirror.wrote(write, revision));
            }
        }
        Ok(())
    }

    /// Removes votes that count for nobody who goes by the configuration that is there, and revocations whose time is over
    /// or that are nobody's word. `members` has heard what is there.
    ///
    /// # Errors
    /// As those of [`ClusterState`].
    pub async fn tidy(&mut self, members: &Members, now_ms: u64) -> Result<(), Fault> {
        let revocations = self.mirror.useless_revocations(members, now_ms);
        self.write(&[], &revocations).await?;
        if !revocations.is_empty() {
            self.mirror.make_room();
        }
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

    async fn revocations(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Mark>,
    ) -> Result<(Vec<Revocation>, Option<Mark>), Fault> {
        Ok(self.mirror.see_revocations(known, after))
    }

    async fn leave(&mut self, offer: Offer<'_>) -> Result<(), Fault> {
        // One by one, so that one of them is in the way of no other.
        for revocation in offer.revocations {
            let revocations = std::slice::from_ref(revocation);
            let writes = self.mirror.writes(Offer { revocations, ..Offer::default() });
            self.write(&[], &writes).await?;
        }
        let writes = self.mirror.writes(Offer { revocations: &[], ..offer });
        self.write(&[], &writes).await
    }

    async fn changed(&mut self, _: &Summary) -> Result<(), Fault> {
        let over = || Fault::unavailable(1000, "etcd tells no more of what is written");
        loop {
            let rest = (self.looked + LOOK).saturating_duration_since(Instant::now());
            if let Ok(message) = tokio::time::timeout(rest, self.watch.message()).await {
                self.note(&message.map_err(fault_of)?.ok_or_else(over)?)?;
                // What has come already is not waited for one by one.
                for _ in 0..AT_ONCE {
                    let Some(message) = self.watch.message().now_or_never() else { break };
                    self.note(&message.map_err(fault_of)?.ok_or_else(over)?)?;
                }
                return Ok(());
            }
            // Silence says nothing: a member that is cut off from the others hears nothing either.
            let look = GetOptions::new().with_keys_only();
            let there = self.client.get(self.mirror.configuration_key(), Some(look));
            match tokio::time::timeout(LOOK_WAIT, there).await {
                Ok(there) => drop(there.map_err(fault_of)?),
                Err(_) => return Err(silent(LOOK_WAIT)),
            }
            self.looked = Instant::now();
        }
    }
}

/// Reads all that is there, as of one revision, page by page; that revision.
async fn read(client: &mut KvClient, mirror: &mut Mirror) -> Result<i64, Fault> {
    // With a majority behind it; the rest is read as of then.
    let first = in_time(client.get(mirror.configuration_key(), None)).await?;
    let revision = first.header().map(etcd_client::ResponseHeader::revision);
    let revision = revision.ok_or_else(|| Fault::malformed("etcd says no revision"))?;
    for found in first.kvs() {
        mirror.put(found.key(), found.value(), found.mod_revision());
    }
    for prefix in mirror.prefixes() {
        read_all(client, mirror, prefix, revision).await?;
    }
    Ok(revision)
}

/// The same, of all names that begin so.
async fn read_all(
    client: &mut KvClient,
    mirror: &mut Mirror,
    prefix: String,
    revision: i64,
) -> Result<(), Fault> {
    let mut from = prefix.into_bytes();
    // The first name behind all that begin so.
    let mut end = from.clone();
    end.pop();
    end.push(b'/' + 1);
    let mut limit = PAGE as i64;
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(limit);
        let options = options.with_revision(revision);
        let page = tokio::time::timeout(ANSWER_WAIT, client.get(from.clone(), Some(options))).await;
        let page = match page.map_err(|_| silent(ANSWER_WAIT))? {
            Ok(page) => page,
            // Somebody has put something large there. One of it is no longer than an answer may be.
            Err(Error::GRpcStatus(status)) if status.code() as i32 == OUT_OF_RANGE && limit > 1 => {
                limit /= 2;
                continue;
            }
            Err(error) => return Err(fault_of(error)),
        };
        for found in page.kvs() {
            mirror.put(found.key(), found.value(), found.mod_revision());
        }
        let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok(()) };
        if last.key() < &from[..] {
            return Err(Fault::malformed("etcd's names go round"));
        }
        from = [last.key(), &[0]].concat();
        limit = (limit * 2).min(PAGE as i64);
    }
}

fn silent(wait: Duration) -> Fault {
    let seconds = wait.as_secs();
    let why = format!("etcd has not answered for {seconds} s: no majority of it, or the network");
    Fault::unavailable(1000, why)
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(fault_of),
        Err(_) => Err(silent(ANSWER_WAIT)),
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
    match error {
        Error::GRpcStatus(status) if NOT_LET_IN.contains(&(status.code() as i32)) => {
            Fault::Unauthenticated(why)
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) => Fault::Malformed(why),
        _ => Fault::unavailable(1000, why),
    }
}
