//! `network share`: carries what this machine's node has heard of its cluster to a store that nodes share, and back.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use distos_abi::Fault;
use distos_etcd::{Access, EtcdState};
use distos_identity::{Bundle, MAX_BUNDLE_BYTES};
use distos_membership::{ClusterState as _, Left, Members, Other, Summary, hear, leave};
use distos_network::NodeState;
use distos_schemas::network_capnp::network::Client;
use serde_json::json;
use zeroize::Zeroizing;

use super::holder::{Holder, call, now_ms, random, read};
use super::{Context, Report, complain, files, network, say};

/// The longest certificate or key that is read, in bytes.
const MAX_PEM_BYTES: u64 = 64 << 10;
/// How long to wait before it is tried again, at first and at most, and before what comes is looked at together with what
/// comes next.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(16);
const TOGETHER: Duration = Duration::from_millis(50);
/// How often it is told what is wrong, if it is something else each time.
const TELL: Duration = Duration::from_secs(60);
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

    /// Offers nothing, as whoever may offer something can.
    async fn offer_nothing(&self) -> Result<(), Fault> {
        call(self.client.offer_request()).await.map(drop)
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
    // Whatever this capability may not do is told before anybody relies on it.
    let cluster = near.bundle().await?.cluster().clone();
    in_time(near.offer_nothing()).await?;
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
        again: AGAIN,
        told: None,
        wrong: None,
        mended: None,
    };
    let mut near = Some(near);
    loop {
        let Err(away) = carrier.carry(&mut near).await;
        match &away {
            // Whoever gave this has taken it back; or nothing of it will ever be understood.
            Away::Node(fault @ (Fault::Revoked | Fault::Expired { .. } | Fault::Denied { .. }))
            | Away::Store(fault @ Fault::Malformed(_)) => return Err(fault.clone()),
            Away::Node(_) => near = None,
            Away::Store(_) => carrier.at += 1,
        }
        carrier.tell(Some(away.text()));
        tokio::time::sleep(carrier.again).await;
        carrier.again = (carrier.again * 2).min(AGAIN_MOST);
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
    /// After how long it is tried again.
    again: Duration,
    /// What was said last about who is away, and about what is wrong; of the latter, when.
    told: Option<String>,
    wrong: Option<(String, Instant)>,
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

    /// Says what is wrong, once: whoever writes to the store decides what and how often.
    fn tell_wrong(&mut self, what: String) {
        let is_new = match &self.wrong {
            Some((told, at)) => *told != what && at.elapsed() >= TELL,
            None => true,
        };
        if is_new {
            complain(&format!("distos: {what}"));
            self.wrong = Some((what, Instant::now()));
        }
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
        let mut homes = in_time(node.state.homes()).await.map_err(Away::Node)?;
        let cluster = bundle.cluster();
        let opened = EtcdState::open(endpoint, &self.access, cluster, homes.clone()).await;
        let mut store = opened.map_err(Away::Store)?;
        loop {
            let let_in = in_time(node.state.homes()).await.map_err(Away::Node)?;
            if let_in != homes {
                // Of the others nothing was kept in mind.
                let opened = EtcdState::open(endpoint, &self.access, cluster, let_in.clone());
                store = opened.await.map_err(Away::Store)?;
                homes = let_in;
            }
            self.members.revocations_mut().show(homes.clone());
            let seen = self.once(node, &mut store).await?;
            self.again = AGAIN;
            self.tell(None);
            tokio::select! {
                changed = node.state.changed(&seen) => changed.map_err(Away::Node)?,
                changed = store.changed(&seen) => changed.map_err(Away::Store)?,
            }
            // Not all at one time who share a store.
            let apart_ms = u64::from(random::<1>().map_or(0, |[byte]| byte));
            tokio::time::sleep(TOGETHER + Duration::from_millis(apart_ms)).await;
        }
    }

    /// The same, once. What the node had heard before.
    async fn once(&mut self, node: &mut Near, store: &mut EtcdState) -> Result<Summary, Away> {
        let bundle = node.bundle().await.map_err(Away::Node)?;
        let (members, state) = (&mut self.members, &mut node.state);
        // What it hears from here on is seen again the next time.
        let seen = in_time(state.known()).await.map_err(Away::Node)?.summary;
        let from_node = in_time(hear(members, state, true, &bundle, now_s()));
        let from_node = from_node.await.map_err(Away::Node)?;
        let from_store = hear(members, store, false, &bundle, now_s()).await;
        let from_store = from_store.map_err(Away::Store)?;
        // First what is heard, then what is said: a store that can be read and not written to is better than none.
        let to_node = in_time(leave(members, state, &bundle, now_s(), false)).await;
        let may_mend = self.mended.is_none_or(|mended| mended.elapsed() >= MEND);
        let to_store = leave(members, store, &bundle, now_s(), may_mend).await;
        let to_node = match to_node {
            // It has had enough for now, and goes on.
            Err(Fault::Unavailable { why, .. }) => {
                self.tell_wrong(format!("not all was taken by the node: {why}"));
                Left::default()
            }
            left => left.map_err(Away::Node)?,
        };
        let to_store = to_store.map_err(Away::Store)?;
        if to_store.other == Some(Other::Unknown) && may_mend {
            self.mended = Some(Instant::now());
        }
        store.tidy(&self.members, now_ms()).await.map_err(Away::Store)?;
        let wrong = [
            (from_node.wrong, "not all that the node has heard counts"),
            (from_store.wrong, "not all that is in the store counts"),
            (to_node.refused, "not all that is in the store is taken by the node"),
            (to_store.refused, "not all is taken by the store"),
        ];
        if to_store.other == Some(Other::Known) {
            let why = "the store has another configuration of this cluster, which a root has signed: sign one \
                with a greater number";
            self.tell_wrong(why.to_owned());
        }
        match wrong.into_iter().find_map(|(fault, what)| Some((fault?, what))) {
            Some((fault, what)) => self.tell_wrong(format!("{what}: {fault}")),
            None if to_store.other.is_none() => self.wrong = None,
            None => {}
        }
        if store.is_partial() {
            let why = "more is in it than voters can say; what is useless of it is removed";
            return Err(Away::Store(Fault::unavailable(1000, why)));
        }
        Ok(seen)
    }
}
