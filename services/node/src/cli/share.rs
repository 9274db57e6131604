//! `network share`: carries what this machine's node has heard of its cluster to a store that nodes share, and back.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use distos_abi::Fault;
use distos_etcd::{Access, EtcdState};
use distos_identity::{Bundle, MAX_BUNDLE_BYTES};
use distos_membership::{ClusterState as _, Members, hear, leave};
use distos_network::NodeState;
use distos_schemas::network_capnp::network::Client;
use serde_json::json;
use zeroize::Zeroizing;

use super::holder::{Holder, call, now_ms, read};
use super::{Context, Report, complain, files, network, say};

/// The longest certificate or key that is read, in bytes.
const MAX_PEM_BYTES: u64 = 64 << 10;
/// How long to wait before it is tried again, and before what comes is looked at together with what comes next.
const AGAIN: Duration = Duration::from_secs(1);
const TOGETHER: Duration = Duration::from_millis(100);
/// How often something is written in place of a later configuration that no root has signed of which this node knows.
const MEND: Duration = Duration::from_secs(60);
/// How long the node may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Arguments of `network share`.
#[derive(Args)]
pub struct ShareArgs {
    /// A member of the store: https://HOST:PORT. Once for each; one that does not answer is left for the next
    #[arg(long = "etcd", value_name = "URL", required = true)]
    endpoints: Vec<String>,
    /// The certificate of who vouches for the members, in PEM
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The certificate by which the store knows this program, in PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// What does not answer, and how.
enum Away {
    Node(Fault),
    Store(Fault),
}

impl Away {
    fn text(&self) -> String {
        match self {
            Away::Node(fault) => format!("the node is away, and is asked again: {fault}"),
            Away::Store(fault) => format!("the store is away, and is asked again: {fault}"),
        }
    }
}

/// A connection to the node.
pub(super) struct Near {
    _holder: Holder,
    client: Client,
    state: NodeState,
}

impl Near {
    /// What `holder` reaches.
    pub(super) fn of(holder: Holder, client: Client) -> Near {
        let state = NodeState::own(client.clone());
        Near { _holder: holder, client, state }
    }

    async fn open(context: &Context) -> Result<Near, Fault> {
        let holder = context.holder()?;
        let client = holder.root(network::ENTRY).await?;
        Ok(Near::of(holder, client))
    }

    /// The cluster's bundle, by which what is found elsewhere is judged.
    async fn bundle(&self) -> Result<Bundle, Fault> {
        let answer = in_time(call(self.client.bundle_request())).await?;
        let text = read(|| Ok(answer.get()?.get_bundle()?.to_str()?.to_owned()))?;
        match text.len() <= MAX_BUNDLE_BYTES {
            true => Bundle::parse(&text),
            false => Err(Fault::malformed("a bundle is not so long")),
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Err(Fault::unavailable(1000, "the network service does not answer"));
    tokio::time::timeout(ANSWER_WAIT, answer).await.unwrap_or_else(late)
}

fn now_s() -> u64 {
    now_ms() / 1000
}

pub(super) async fn share(
    context: &Context,
    near: Near,
    args: &ShareArgs,
) -> Result<Report, Fault> {
    if let Some(open) = args.endpoints.iter().find(|one| !one.starts_with("https://")) {
        return Err(Fault::malformed(format!(
            "{open}: a store is reached at https://HOST:PORT, with certificates on both sides"
        )));
    }
    let access = Access {
        authority: files::read_bytes(&args.ca, MAX_PEM_BYTES)?,
        certificate: files::read_bytes(&args.cert, MAX_PEM_BYTES)?,
        key: Zeroizing::new(files::read_text(&args.key, MAX_PEM_BYTES)?.as_bytes().to_vec()),
    };
    let cluster = near.bundle().await?.cluster().clone();
    say(&match context.json {
        true => json!({ "cluster": cluster.to_string(), "etcd": args.endpoints }).to_string(),
        false => format!(
            "what this node hears of cluster {cluster} is carried to etcd and back; Ctrl-C ends it"
        ),
    });
    let mut carrier = Carrier {
        context,
        args,
        access,
        members: Members::default(),
        at: 0,
        told: None,
        told_wrong: None,
        mended: None,
    };
    let mut near = Some(near);
    loop {
        let Err(away) = carrier.carry(&mut near).await;
        match &away {
            // Whoever gave this has taken it back.
            Away::Node(fault @ (Fault::Revoked | Fault::Expired { .. } | Fault::Denied { .. })) => {
                return Err(fault.clone());
            }
            Away::Node(_) => near = None,
            Away::Store(_) => carrier.at += 1,
        }
        carrier.tell(Some(away.text()));
        tokio::time::sleep(AGAIN).await;
    }
}

struct Carrier<'a> {
    context: &'a Context,
    args: &'a ShareArgs,
    access: Access,
    /// What was heard on either side.
    members: Members,
    /// Which member of the store is asked.
    at: usize,
    /// What was said last about who is away, and about what is wrong in the store.
    told: Option<String>,
    told_wrong: Option<String>,
    /// When something strange was last written over.
    mended: Option<Instant>,
}

impl Carrier<'_> {
    /// Says who is away, once, and that both answer again.
    fn tell(&mut self, away: Option<String>) {
        if self.told != away {
            complain(&match &away {
                Some(away) => format!("distos: {away}"),
                None => "distos: both answer again".to_owned(),
            });
            self.told = away;
        }
    }

    /// Says what is wrong in the store, once.
    fn tell_wrong(&mut self, wrong: Option<Fault>) {
        let wrong = wrong.map(|wrong| wrong.to_string());
        if let Some(wrong) = wrong.as_ref().filter(|wrong| self.told_wrong.as_ref() != Some(wrong))
        {
            complain(&format!("distos: not all that is in the store counts: {wrong}"));
        }
        self.told_wrong = wrong;
    }

    /// Carries what one side has and the other has not, until one of them does not answer.
    async fn carry(&mut self, near: &mut Option<Near>) -> Result<Infallible, Away> {
        let node = match near {
            Some(near) => near,
            None => {
                let opened = Near::open(self.context).await;
                near.insert(opened.map_err(Away::Node)?)
            }
        };
        let endpoint = &self.args.endpoints[self.at % self.args.endpoints.len()];
        let bundle = node.bundle().await.map_err(Away::Node)?;
        let store = EtcdState::open(endpoint, &self.access, bundle.cluster()).await;
        let mut store = store.map_err(Away::Store)?;
        loop {
            let bundle = node.bundle().await.map_err(Away::Node)?;
            // What it hears from here on is seen again below.
            let seen = in_time(node.state.known()).await.map_err(Away::Node)?.summary;
            let (members, state) = (&mut self.members, &mut node.state);
            in_time(hear(members, state, &bundle, now_s())).await.map_err(Away::Node)?;
            let found = hear(members, &mut store, &bundle, now_s()).await.map_err(Away::Store)?;
            let may_mend = self.mended.is_none_or(|mended| mended.elapsed() >= MEND);
            let left = leave(members, &mut store, &bundle, now_s(), may_mend).await;
            if left.map_err(Away::Store)?.is_strange && may_mend {
                self.mended = Some(Instant::now());
            }
            let left = in_time(leave(members, state, &bundle, now_s(), false)).await;
            match left {
                // What it makes nothing of was verified here, by a newer configuration or an older bundle.
                Ok(_) | Err(Fault::Unauthenticated(_) | Fault::Malformed(_)) => {}
                Err(fault) => return Err(Away::Node(fault)),
            }
            store.tidy(&self.members).await.map_err(Away::Store)?;
            self.tell_wrong(found.wrong);
            self.tell(None);
            tokio::select! {
                changed = node.state.changed(&seen) => changed.map_err(Away::Node)?,
                changed = store.changed(&seen) => changed.map_err(Away::Store)?,
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }
}
