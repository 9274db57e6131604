//! `workload …`: being one of a tenant's agents, for programs that know SPIFFE and not DistOS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use distos_abi::Fault;
use distos_identity::{Bundle, Identity, Usage, to_pem};
use distos_schemas::network_capnp::agents;
use distos_types::HolderSecret;
use distos_workload::{Asked, Shown};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::holder::{Holder, call, now_ms, read, read_secret};
use super::{Context, Report, complain, files, say, socket, text};

/// The entry of a capability file that makes its holder an agent.
pub(super) const ENTRY: &str = "agents";
/// How long to wait before an SVID that was not renewed is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// The shortest time between two SVIDs.
const SHORTEST: Duration = Duration::from_secs(1);
/// Tokens that are asked for at one time.
const MAX_ASKED: usize = 16;

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
It goes on until Ctrl-C, and renews the SVID when half of its time is over. Only this Linux user can connect.
The program gets the agent's key: give each a key of its own, and no capability that it should not have.")]
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
  curl -H \"Authorization: Bearer $(distos workload token https://shop.example --as red.cap)\" https://shop.example
It holds for five minutes, at those whom it names. Whoever sees it can show it to them.")]
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

impl<'a> Agent<'a> {
    fn new(context: &'a Context, entry: &EntryArgs) -> Result<Agent<'a>, Fault> {
        let acting = context.acting().ok_or_else(|| {
            Fault::malformed("say whose agent it is: --as FILE, with its secret key beside it")
        })?;
        let secret = Arc::new(read_secret(acting)?);
        Ok(Agent { context, acting, entry: entry.entry.clone(), secret })
    }

    /// Over a connection of its own: the service may have been started anew since the last.
    async fn restore(&self) -> Result<(Holder, agents::Client), Fault> {
        let holder = Holder::load(self.acting, self.context.node.as_deref())?;
        let client = holder.root(&self.entry).await?;
        Ok((holder, client))
    }

    /// A new SVID, and until when it holds.
    async fn svid(&self) -> Result<(Shown, u64), Fault> {
        let (_holder, client) = self.restore().await?;
        let answer = call(client.sign_request()).await?;
        let (chain, bundle) = read(|| {
            let answer = answer.get()?;
            let chain = answer.get_chain()?.iter().map(|one| one.map(<[u8]>::to_vec));
            let chain: Vec<_> = chain.collect::<capnp::Result<_>>()?;
            Ok((chain, answer.get_bundle()?.to_str()?.to_owned()))
        })?;
        let bundle = Bundle::parse(&bundle)?;
        let found = Identity::verify(&chain, &bundle, now_ms() / 1000, Usage::Client)?;
        if found.key != self.secret.key() {
            return Err(Fault::internal("the SVID is for another key"));
        }
        let shown = Shown { id: found.id, chain, secret: self.secret.clone(), bundle };
        Ok((shown, found.until_s))
    }

    async fn token(&self, audiences: &[String]) -> Result<(String, u64), Fault> {
        let (_holder, client) = self.restore().await?;
        let mut request = client.token_request();
        request.get().set_audiences(audiences).map_err(Fault::internal)?;
        let answer = call(request).await?;
        read(|| {
            let answer = answer.get()?;
            Ok((answer.get_token()?.to_str()?.to_owned(), answer.get_until_s()))
        })
    }
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
    let (shown, until_s) = agent.svid().await?;
    files::write(&out, to_pem(&shown.chain)?.as_bytes(), files::PUBLIC)?;
    let (id, at) = (shown.id.to_string(), out.display().to_string());
    let text = format!("{id}\n  until {}\n  {at}", text::instant(until_s.saturating_mul(1000)));
    Ok(Report { text, json: json!({ "id": id, "svid": at, "until_s": until_s }) })
}

async fn token(context: &Context, args: &TokenArgs) -> Result<Report, Fault> {
    let agent = Agent::new(context, &args.entry)?;
    let (token, until_s) = agent.token(&args.audiences).await?;
    Ok(Report { json: json!({ "token": token, "until_s": until_s }), text: token })
}

async fn serve(context: &Context, args: &ServeArgs) -> Result<Report, Fault> {
    let agent = Agent::new(context, &args.entry)?;
    // Whatever is wrong is told before anybody relies on it.
    let (first, until_s) = agent.svid().await?;
    let (listener, _place) = socket::listen(&args.listen)?;
    let (at, id) = (args.listen.display().to_string(), first.id.to_string());
    let (shows, shown) = watch::channel(Some(Arc::new(first)));
    let (asks, asked) = mpsc::channel(MAX_ASKED);
    say(&match context.json {
        true => json!({ "listening": at, "id": id }).to_string(),
        false => format!("whoever connects to {at} is {id}; Ctrl-C ends it"),
    });
    tokio::select! {
        served = distos_workload::serve(listener, shown, asks, std::future::pending()) => {
            served.map_err(Fault::internal)?;
        }
        () = renew(&agent, &shows, until_s) => {}
        () = answer(&agent, asked) => {}
    }
    Ok(Report::nothing())
}

/// Shows a newer SVID when half of the present one's time is over, and none once it is.
async fn renew(agent: &Agent<'_>, shows: &watch::Sender<Option<Arc<Shown>>>, until_s: u64) {
    let left = |until_s: u64| Duration::from_millis((until_s * 1000).saturating_sub(now_ms()));
    let mut until_s = until_s;
    let mut pause = left(until_s) / 2;
    loop {
        tokio::time::sleep(pause.max(SHORTEST)).await;
        match agent.svid().await {
            Ok((next, next_until_s)) => {
                until_s = next_until_s;
                pause = left(until_s) / 2;
                shows.send_replace(Some(Arc::new(next)));
            }
            Err(fault) => {
                complain(&format!("distos: the SVID was not renewed: {fault}"));
                let rest = left(until_s);
                if rest.is_zero() || is_final(&fault) {
                    shows.send_replace(None);
                }
                pause = if rest.is_zero() { AGAIN } else { AGAIN.min(rest) };
            }
        }
    }
}

/// Whether the capability is gone, and not the service: nothing is shown any more of what it gave.
fn is_final(fault: &Fault) -> bool {
    matches!(fault, Fault::Revoked | Fault::Expired { .. } | Fault::Denied { .. })
}

/// Gets tokens for those who ask.
async fn answer(agent: &Agent<'_>, mut asked: mpsc::Receiver<Asked>) {
    while let Some(Asked { audiences, answer }) = asked.recv().await {
        let token = agent.token(&audiences).await.map(|(token, _)| token);
        // Whoever asked may be gone.
        let _ = answer.send(token);
    }
}
