//! `workload …`: being one of a tenant's agents, for programs that know SPIFFE and not DistOS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::FromClientHook as _;
use clap::{Args, Subcommand};
use distos_abi::Fault;
use distos_identity::{Bundle, Identity, SpiffeId, Usage, to_pem};
use distos_schemas::capability_capnp::capability;
use distos_schemas::network_capnp::agents;
use distos_types::HolderSecret;
use distos_workload::{Asked, Shown, Standing};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::holder::{Holder, call, now_ms, read, read_secret};
use super::{Context, Report, complain, files, say, socket, text};

/// The entry of a capability file that makes its holder an agent.
pub(super) const ENTRY: &str = "agents";
/// How often it is looked whether the capability is still there, and whether it is time for another SVID. By the
/// clock on the wall: a machine may have slept meanwhile.
const LOOK: Duration = Duration::from_secs(5);
/// The same where an SVID's time is short.
const LOOK_OFTEN: Duration = Duration::from_secs(1);
/// How long the node may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Tokens that wait, and those that are got at one time.
const MAX_ASKED: usize = 16;
const MAX_ASKING: usize = 4;

/// Commands about being an agent.
#[derive(Subcommand)]
pub enum WorkloadCommand {
    /// Serve the SPIFFE Workload API: whoever connects gets this agent's SVID with its key, tokens and the bundle
    #[command(after_help = "\
Example: red makes an agent of its own for a program, and the program is that one
  distos image keygen shop.key
  distos cap delegate red.cap --as red.cap --entry agents --to shop.pub --out shop.cap
  distos workload serve --as shop.cap --listen unix:shop.sock
  SPIFFE_ENDPOINT_SOCKET=unix://$PWD/shop.sock program
It goes on until Ctrl-C, and renews the SVID when half of its time is over. Only this Linux user can
connect. The program gets the agent's key: give each a key of its own, and no capability that it should
not have.")]
    Serve(ServeArgs),
    /// Get this agent an SVID, and write it where `distos connect` looks for it
    #[command(after_help = "\
Example:
  distos workload svid --as red.cap
writes red.pem: the SVID, and its issuer's certificate behind it.")]
    Svid(SvidArgs),
    /// Get this agent a token for servers that do not look at certificates, and print it
    #[command(after_help = "\
Example:
  printf 'header = \"Authorization: Bearer %s\"' \"$(distos workload token https://shop.example --as red.cap)\" |
    curl -K - https://shop.example
It holds for five minutes, at those whom it names. Whoever sees it can show it to them: keep it off
command lines, which every user of this machine can read.")]
    Token(TokenArgs),
}

/// Which capability it is.
#[derive(Args)]
pub struct EntryArgs {
    /// The entry of the capability file that makes its holder an agent
    #[arg(long, value_name = "NAME", default_value = ENTRY)]
    entry: String,
}

/// Arguments of `workload serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// The socket to make: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = socket::path)]
    listen: PathBuf,
    #[command(flatten)]
    entry: EntryArgs,
}

/// Arguments of `workload svid`.
#[derive(Args)]
pub struct SvidArgs {
    /// The file to write [default: the capability file with the extension .pem]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    entry: EntryArgs,
}

/// Arguments of `workload token`.
#[derive(Args)]
pub struct TokenArgs {
    /// Who is to take it, by the name that they go by
    #[arg(value_name = "AUDIENCE", required = true)]
    audiences: Vec<String>,
    #[command(flatten)]
    entry: EntryArgs,
}

/// Who can be an agent.
struct Agent<'a> {
    context: &'a Context,
    acting: &'a Path,
    entry: String,
    secret: Arc<HolderSecret>,
}

/// A connection to the node, and the capability over it.
struct Session {
    _holder: Holder,
    client: agents::Client,
}

impl<'a> Agent<'a> {
    fn new(context: &'a Context, entry: &EntryArgs) -> Result<Agent<'a>, Fault> {
        let acting = context.acting().ok_or_else(|| {
            Fault::malformed("say whose agent it is: --as FILE, with its secret key beside it")
        })?;
        let secret = Arc::new(read_secret(acting)?);
        Ok(Agent { context, acting, entry: entry.entry.clone(), secret })
    }

    async fn restore(&self) -> Result<Session, Fault> {
        let holder = Holder::load(self.acting, self.context.node.as_deref())?;
        if holder.secret.key() != self.secret.key() {
            let why = "its key is another one than before: start this again";
            return Err(Fault::Unauthenticated(format!("{}: {why}", self.acting.display())));
        }
        let client = holder.root(&self.entry).await?;
        Ok(Session { _holder: holder, client })
    }

    /// A new SVID.
    async fn svid(&self, session: &Session) -> Result<Shown, Fault> {
        let answer = in_time(call(session.client.sign_request())).await?;
        let (chain, bundle) = read(|| {
            let answer = answer.get()?;
            let chain = answer.get_chain()?.iter().map(|one| one.map(<[u8]>::to_vec));
            let chain: Vec<_> = chain.collect::<capnp::Result<_>>()?;
            Ok((chain, answer.get_bundle()?.to_str()?.to_owned()))
        })?;
        let bundle = Bundle::parse(&bundle)?;
        // Not what became of the capability: that is for the node to say.
        let wrong = |refusal| Fault::unavailable(1000, format!("the SVID is none: {refusal}"));
        let found = Identity::verify(&chain, &bundle, now_s(), Usage::Client).map_err(wrong)?;
        if found.key != self.secret.key() {
            return Err(Fault::internal("the SVID is for another key"));
        }
        let (id, secret, until_s) = (found.id, self.secret.clone(), found.until_s);
        Ok(Shown { id, chain, secret, bundle, until_s })
    }

    /// A token, whose it is, and until when it holds.
    async fn token(&self, audiences: &[String]) -> Result<(String, SpiffeId, u64), Fault> {
        let session = self.restore().await?;
        let mut request = session.client.token_request();
        request.get().set_audiences(audiences).map_err(Fault::internal)?;
        let answer = in_time(call(request)).await?;
        let (token, id, until_s) = read(|| {
            let answer = answer.get()?;
            let id = answer.get_id()?.to_str()?.to_owned();
            Ok((answer.get_token()?.to_str()?.to_owned(), id, answer.get_until_s()))
        })?;
        Ok((token, id.parse()?, until_s))
    }
}

impl Session {
    /// Whether the capability is still there.
    async fn look(&self) -> Result<(), Fault> {
        let capability: capability::Client = self.client.clone().cast_to();
        in_time(call(capability.describe_request())).await.map(drop)
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Err(Fault::unavailable(1000, "the network service does not answer"));
    tokio::time::timeout(ANSWER_WAIT, answer).await.unwrap_or_else(late)
}

fn now_s() -> u64 {
    now_ms() / 1000
}

pub(super) async fn command(context: &Context, command: WorkloadCommand) -> Result<Report, Fault> {
    match command {
        WorkloadCommand::Serve(args) => serve(context, &args).await,
        WorkloadCommand::Svid(args) => svid(context, &args).await,
        WorkloadCommand::Token(args) => token(context, &args).await,
    }
}

async fn svid(context: &Context, args: &SvidArgs) -> Result<Report, Fault> {
    let agent = Agent::new(context, &args.entry)?;
    let out = args.out.clone().unwrap_or_else(|| agent.acting.with_extension("pem"));
    let shown = agent.svid(&agent.restore().await?).await?;
    files::write(&out, to_pem(&shown.chain)?.as_bytes(), files::PUBLIC)?;
    let (id, at, until_s) = (shown.id.to_string(), out.display().to_string(), shown.until_s);
    let text = format!("{id}\n  until {}\n  {at}", text::instant(until_s.saturating_mul(1000)));
    Ok(Report { text, json: json!({ "id": id, "svid": at, "until_s": until_s }) })
}

async fn token(context: &Context, args: &TokenArgs) -> Result<Report, Fault> {
    let agent = Agent::new(context, &args.entry)?;
    let (token, id, until_s) = agent.token(&args.audiences).await?;
    let json = json!({ "token": token, "id": id.to_string(), "until_s": until_s });
    Ok(Report { json, text: token })
}

async fn serve(context: &Context, args: &ServeArgs) -> Result<Report, Fault> {
    let agent = Agent::new(context, &args.entry)?;
    // Whatever is wrong is told before anybody relies on it.
    let session = agent.restore().await?;
    let first = Arc::new(agent.svid(&session).await?);
    let (listener, _place) = socket::listen(&args.listen)?;
    let (at, id) = (args.listen.display().to_string(), first.id.clone());
    let (says, standing) = watch::channel(Standing::Held(first.clone()));
    let (asks, asked) = mpsc::channel(MAX_ASKED);
    say(&match context.json {
        true => json!({ "listening": at, "id": id.to_string() }).to_string(),
        false => format!("whoever connects to {at} is {id}; Ctrl-C ends it"),
    });
    let over = std::future::pending();
    tokio::select! {
        served = distos_workload::serve(listener, standing, asks, Arc::new(now_s), over) => {
            served.map_err(Fault::internal)?;
        }
        never = keep(&agent, &says, session, first) => match never {},
        () = answer(&agent, &says, &id, asked) => {}
    }
    Ok(Report::nothing())
}

/// Shows a newer SVID when half of the present one's time is over, and none once it is or once the capability is gone.
async fn keep(
    agent: &Agent<'_>,
    says: &watch::Sender<Standing>,
    session: Session,
    first: Arc<Shown>,
) -> std::convert::Infallible {
    let half = |shown: &Shown| now_s() + shown.until_s.saturating_sub(now_s()) / 2;
    let (mut session, mut renew_at_s, mut shown) = (Some(session), half(&first), first);
    let mut away = false;
    loop {
        let is_short = shown.until_s.saturating_sub(now_s()) < 4 * LOOK.as_secs();
        tokio::time::sleep(if is_short { LOOK_OFTEN } else { LOOK }).await;
        if matches!(&*says.borrow(), Standing::Ended(_)) {
            // Not even asked any more: each question would be one more refusal in the node's log.
            return std::future::pending().await;
        }
        match next(agent, &mut session, now_s() >= renew_at_s).await {
            Ok(None) => away = false,
            Ok(Some(newer)) => {
                away = false;
                shown = Arc::new(newer);
                renew_at_s = half(&shown);
                set(says, Standing::Held(shown.clone()));
            }
            Err(fault) => {
                session = None;
                if !end(says, &fault) {
                    if !away {
                        complain(&format!("distos: the node is away, and is asked again: {fault}"));
                    }
                    away = true;
                    if now_s() > shown.until_s {
                        set(says, Standing::Away);
                    }
                }
            }
        }
    }
}

/// Says what there is, unless there is nothing any more, which is for good.
fn set(says: &watch::Sender<Standing>, next: Standing) {
    says.send_if_modified(|now| {
        if matches!(now, Standing::Ended(_)) {
            return false;
        }
        *now = next;
        true
    });
}

/// A newer SVID, if it is time for one.
async fn next(
    agent: &Agent<'_>,
    session: &mut Option<Session>,
    renew: bool,
) -> Result<Option<Shown>, Fault> {
    let session = match session {
        Some(session) => session,
        None => session.insert(agent.restore().await?),
    };
    match renew {
        true => agent.svid(session).await.map(Some),
        false => session.look().await.map(|()| None),
    }
}

/// Shows nothing any more if the capability is gone, and not the service; whether it is.
fn end(says: &watch::Sender<Standing>, fault: &Fault) -> bool {
    let is_over = matches!(fault, Fault::Revoked | Fault::Expired { .. });
    if is_over && !matches!(&*says.borrow(), Standing::Ended(_)) {
        complain(&format!("distos: this agent has ended, and nothing is given any more: {fault}"));
        says.send_replace(Standing::Ended(fault.clone()));
    }
    is_over
}

/// Gets tokens for those who ask.
async fn answer(
    agent: &Agent<'_>,
    says: &watch::Sender<Standing>,
    own: &SpiffeId,
    asked: mpsc::Receiver<Asked>,
) {
    let get = |Asked { audiences, mut answer }: Asked| async move {
        let got = async {
            if let Standing::Ended(fault) = &*says.borrow() {
                return Err(fault.clone());
            }
            let (token, id, _) = agent.token(&audiences).await?;
            match id == *own {
                true => Ok(token),
                false => Err(Fault::Unauthenticated(format!("the token is {id}'s"))),
            }
        };
        // Whoever asked may go before there is an answer.
        let got = tokio::select! {
            got = got => got,
            () = answer.closed() => return,
        };
        if let Err(fault) = &got {
            end(says, fault);
        }
        let _ = answer.send(got);
    };
    ReceiverStream::new(asked).for_each_concurrent(MAX_ASKING, get).await;
}
