//! `region create`, `put`, `get`, `list` and `drop`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use distos_abi::{ByteRange, Fault};
use distos_schemas::memory_capnp::{region, region_info, regions};
use distos_types::Chain;
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::files::{self, Draft, Input, InputReader};
use super::holder::{Holder, call, pick, read, read_cap_file};
use super::text::{self, row};
use super::{Context, Report, Stop, interruptible, settled, undo};

/// The most that one call moves.
const CALL_BYTES: u64 = 1 << 20;
/// Calls that may be under way at once: enough to keep disk and service busy, few enough that
/// memory stays bounded at this many MiB.
const IN_FLIGHT: usize = 8;
/// The entry's name in the capability file of one region.
pub const ENTRY: &str = "region";

/// Commands about regions.
#[derive(Subcommand)]
pub enum RegionCommand {
    /// Make a region of zeros
    #[command(
        after_help = "Example:\n  distos region create notes --bytes 64K --as red.cap --out notes.cap"
    )]
    Create(CreateArgs),
    /// Store a file, every file of a directory, or standard input
    #[command(after_help = "\
Examples:
  distos region put books /usr/share/common-licenses --as red.cap --out books.cap
  tar c . | distos region put backup - --as red.cap
  distos region put --cap page.cap --offset 65536 note.txt --as blue.cap")]
    Put(PutArgs),
    /// Fetch a region's bytes
    #[command(after_help = "\
Examples:
  distos region get books -o books.txt --as red.cap
  distos region get --cap page.cap --as blue.cap")]
    Get(GetArgs),
    /// One's own regions
    #[command(after_help = "Example:\n  distos region list --as red.cap")]
    List,
    /// End a region and erase it
    #[command(after_help = "Example:\n  distos region drop books --as red.cap")]
    Drop {
        /// The region's name
        name: String,
    },
}

/// Arguments of `region create`.
#[derive(Args)]
pub struct CreateArgs {
    /// 1 to 64 of a-z A-Z 0-9 . _ -
    name: String,
    /// Its length
    #[arg(long, value_parser = text::parse_bytes, value_name = "SIZE")]
    bytes: u64,
    /// Keep it in memory only: it is gone after a restart
    #[arg(long)]
    volatile: bool,
    /// Where to write the capability to it [default: NAME.cap]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A region that was delegated, in place of one's own by name.
#[derive(Args)]
struct Delegated {
    /// Use the capability in this file instead of a region's name
    #[arg(long, value_name = "FILE")]
    cap: Option<PathBuf>,
    /// Which capability of the file
    #[arg(long, value_name = "ENTRY", requires = "cap")]
    entry: Option<String>,
}

/// Arguments of `region put`.
#[derive(Args)]
pub struct PutArgs {
    /// The region's name (not with --cap), and the file, directory or '-' to store
    #[arg(num_args = 1..=2, required = true, value_names = ["NAME", "PATH"])]
    target: Vec<String>,
    #[command(flatten)]
    delegated: Delegated,
    /// First byte to write [default: the first that the capability reaches]
    #[arg(long, value_parser = text::parse_bytes, requires = "cap", value_name = "N")]
    offset: Option<u64>,
    /// Keep the region in memory only
    #[arg(long, conflicts_with = "cap")]
    volatile: bool,
    /// Also write the capability to the new region, to delegate from
    #[arg(long, conflicts_with = "cap", value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `region get`.
#[derive(Args)]
pub struct GetArgs {
    /// The region's name
    #[arg(required_unless_present = "cap", conflicts_with = "cap")]
    name: Option<String>,
    #[command(flatten)]
    delegated: Delegated,
    /// First byte [default: the first that the capability reaches]
    #[arg(long, value_parser = text::parse_bytes, value_name = "N")]
    offset: Option<u64>,
    /// How many bytes [default: up to the end]
    #[arg(long, value_parser = text::parse_bytes, value_name = "N")]
    len: Option<u64>,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn command(context: &Context, command: RegionCommand) -> Result<Report, Stop> {
    match command {
        RegionCommand::Put(args) => put_command(context, args).await,
        RegionCommand::Get(args) => interruptible(get_command(context, args)).await,
        RegionCommand::Create(args) => settled(create_command(context, args)).await,
        RegionCommand::List => interruptible(list_command(context)).await,
        RegionCommand::Drop { name } => interruptible(drop_command(context, &name)).await,
    }
}

async fn create_command(context: &Context, args: CreateArgs) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let out = args.out.unwrap_or_else(|| PathBuf::from(format!("{}.cap", args.name)));
    if out.exists() {
        return Err(Fault::Exists(format!("{}: choose another --out", out.display())));
    }
    let (region, chain) = create(&holder, &args.name, args.bytes, args.volatile).await?;
    let text = holder.file_of(ENTRY, chain).to_text();
    if let Err(fault) = files::write(&out, text.as_bytes(), files::SECRET) {
        drop_region(&region).await?;
        return Err(fault);
    }
    let text = format!("region {} of {}: {}", args.name, text::bytes(args.bytes), out.display());
    let json = json!({ "name": args.name, "bytes": args.bytes, "cap": out.display().to_string() });
    Ok(Report { json, text })
}

async fn list_command(context: &Context) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let client: regions::Client = holder.root("regions").await?;
    let answer = call(client.list_request()).await?;
    let regions = read(|| {
        answer.get()?.get_regions()?.iter().map(Info::of).collect::<capnp::Result<Vec<_>>>()
    })?;
    let answer = call(client.usage_request()).await?;
    let (used, quota) =
        read(|| Ok((answer.get()?.get_used_bytes(), answer.get()?.get_quota_bytes())))?;
    let mut rows = vec![row(["region", "bytes", "kind", "written"])];
    for r in &regions {
        let written = format!("{} pages", r.written_pages);
        rows.push(row([&r.name, &r.bytes.to_string(), r.keeping(), &written]));
    }
    let text =
        format!("{}\n{} used of {}", text::table(&rows), text::bytes(used), text::bytes(quota));
    let all: Vec<Value> = regions.iter().map(Info::json).collect();
    Ok(Report { json: json!({ "regions": all, "used_bytes": used, "quota_bytes": quota }), text })
}

async fn drop_command(context: &Context, name: &str) -> Result<Report, Fault> {
    let holder = context.holder()?;
    drop_region(&open(&holder, name).await?).await?;
    Ok(Report { json: json!({ "dropped": name }), text: format!("region {name} is erased") })
}

async fn put_command(context: &Context, args: PutArgs) -> Result<Report, Stop> {
    let (name, path) = match (args.target.as_slice(), &args.delegated.cap) {
        ([path], Some(_)) => (None, path.clone()),
        ([name, path], None) => (Some(name.clone()), path.clone()),
        ([_], None) => return Err(Stop::Usage("name the region and the file to store".into())),
        _ => return Err(Stop::Usage("with --cap, name only the file to store".into())),
    };
    let holder = context.holder()?;
    let input = interruptible(input_of(path)).await?;
    let total = input.total();
    let bar = super::progress(context, total, "storing", true);
    let Some(name) = name else {
        let (region, range) = interruptible(delegated(&holder, &args.delegated)).await?;
        let offset = args.offset.unwrap_or(range.start);
        interruptible(store(&region, offset, &mut input.read(), total, &bar)).await?;
        let text = format!("{} written at {offset}", text::bytes(total));
        return Ok(Report { json: json!({ "bytes": total, "offset": offset }), text });
    };
    let put = put(&holder, &name, input, args.volatile, &bar).await?;
    if let Some(out) = &args.out {
        let file = holder.file_of(ENTRY, put.chain_of(&name)?);
        files::write(out, file.to_text().as_bytes(), files::SECRET)?;
    }
    Ok(Report { text: put.text(), json: put.json })
}

/// The input named on the command line; a pipe is read on a thread of its own, so that Ctrl-C
/// still works while nothing comes.
async fn input_of(path: String) -> Result<Input, Fault> {
    let read = move || match path.as_str() {
        "-" => Input::of_stream(
            &mut std::io::stdin().lock() as &mut dyn Read,
            Path::new("standard input"),
        ),
        path => Input::of_path(Path::new(path)),
    };
    tokio::task::spawn_blocking(read).await.map_err(Fault::internal)?
}

/// What was stored.
pub struct Put {
    /// `name`, `bytes`, `files`, `root`.
    pub json: Value,
    /// The holder's sturdy capability to the region, if the region is new.
    pub chain: Option<Chain>,
    /// The region itself.
    pub region: region::Client,
}

impl Put {
    /// For people.
    pub fn text(&self) -> String {
        let root = self.json["root"].as_str().unwrap_or_default();
        format!(
            "region {}: {} from {} file(s), BLAKE3 over its pages {}…",
            self.json["name"].as_str().unwrap_or_default(),
            text::bytes(self.json["bytes"].as_u64().unwrap_or(0)),
            self.json["files"],
            text::short(root)
        )
    }

    /// The sturdy capability, which a service gives once: when the region is made.
    pub fn chain_of(&self, name: &str) -> Result<Chain, Fault> {
        self.chain.clone().ok_or_else(|| {
            Fault::Exists(format!(
                "region {name} was there already, and the capability to it was given when it was made"
            ))
        })
    }
}

/// Stores `input` in the region `name`, which is made if need be. If that fails or is interrupted,
/// a region that was made for it is erased again.
pub async fn put(
    holder: &Holder,
    name: &str,
    input: Input,
    volatile: bool,
    bar: &ProgressBar,
) -> Result<Put, Stop> {
    let (total, count) = (input.total(), input.files());
    let (region, chain) = settled(open_or_create(holder, name, total, volatile)).await?;
    let work = async {
        store(&region, 0, &mut input.read(), total, bar).await?;
        info(&region).await
    };
    match interruptible(work).await {
        Ok(info) => {
            let json = json!({ "name": name, "bytes": total, "files": count, "root": info.root });
            Ok(Put { json, chain, region })
        }
        Err(stop) => {
            if chain.is_some() {
                undo(drop_region(&region)).await;
            } else {
                super::complain(&format!(
                    "distos: region {name} may hold old and new content mixed: store it again"
                ));
            }
            Err(stop)
        }
    }
}

async fn open_or_create(
    holder: &Holder,
    name: &str,
    bytes: u64,
    volatile: bool,
) -> Result<(region::Client, Option<Chain>), Fault> {
    match open(holder, name).await {
        Ok(region) => {
            let found = info(&region).await?.bytes;
            if found != bytes {
                return Err(Fault::Exists(format!(
                    "region {name} of {found} bytes, and the input has {bytes}: drop it first \
                     (`distos region drop {name}`) or choose another name"
                )));
            }
            Ok((region, None))
        }
        Err(Fault::NotFound(_)) => {
            let (region, chain) = create(holder, name, bytes, volatile).await?;
            Ok((region, Some(chain)))
        }
        Err(fault) => Err(fault),
    }
}

async fn get_command(context: &Context, args: GetArgs) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let (region, reach) = match &args.name {
        Some(name) => (open(&holder, name).await?, ByteRange::WHOLE),
        None => delegated(&holder, &args.delegated).await?,
    };
    let offset = args.offset.unwrap_or(reach.start);
    let len = match args.len {
        Some(len) => len,
        None => to_the_end(offset, info(&region).await?.bytes.min(reach.end))?,
    };
    let bar = super::progress(context, len, "fetching", true);
    let Some(out) = &args.out else {
        fetch(&region, offset, len, &bar, &mut super::emit).await?;
        return Ok(Report::nothing());
    };
    let mut draft = Draft::create(out, files::PUBLIC)?;
    fetch(&region, offset, len, &bar, &mut async |bytes| draft.append(bytes)).await?;
    draft.keep()?;
    let json = json!({ "bytes": len, "offset": offset, "out": out.display().to_string() });
    Ok(Report { json, text: format!("{} in {}", text::bytes(len), out.display()) })
}

fn to_the_end(offset: u64, end: u64) -> Result<u64, Fault> {
    end.checked_sub(offset).filter(|len| *len > 0).ok_or_else(|| {
        Fault::malformed(format!("--offset {offset} is not before the end at byte {end}"))
    })
}

/// The region that a file's capability speaks of, and the bytes that it reaches.
async fn delegated(
    holder: &Holder,
    args: &Delegated,
) -> Result<(region::Client, ByteRange), Fault> {
    let path = args.cap.as_deref().unwrap_or(Path::new(""));
    let file = read_cap_file(path)?;
    let chain = &pick(&file, args.entry.as_deref())?.chain;
    Ok((restore(holder, chain).await?, chain.authority().caveats.range))
}

/// A live capability to the region that `chain` speaks of.
pub async fn restore(holder: &Holder, chain: &Chain) -> Result<region::Client, Fault> {
    if chain.root().kind != distos_types::kind::REGION {
        let kind = distos_types::kind::name(chain.root().kind);
        return Err(Fault::malformed(format!("this is a capability to a {kind}, not to a region")));
    }
    holder.restore(chain).await
}

/// Makes a region of zeros. The chain is the holder's sturdy capability to it.
pub async fn create(
    holder: &Holder,
    name: &str,
    bytes: u64,
    volatile: bool,
) -> Result<(region::Client, Chain), Fault> {
    let client: regions::Client = holder.root("regions").await?;
    let mut request = client.create_request();
    request.get().set_name(name);
    request.get().set_bytes(bytes);
    request.get().set_volatile(volatile);
    let answer = call(request).await?;
    let (region, chain) = read(|| {
        let answer = answer.get()?;
        Ok((answer.get_region()?, answer.get_chain()?.to_vec()))
    })?;
    Ok((region, Chain::decode(&chain)?))
}

/// A region of one's own by its name.
pub async fn open(holder: &Holder, name: &str) -> Result<region::Client, Fault> {
    open_until(holder, name, 0).await
}

/// The same until then (Unix milliseconds), whether or not this command still runs.
pub async fn open_until(
    holder: &Holder,
    name: &str,
    until_ms: u64,
) -> Result<region::Client, Fault> {
    let client: regions::Client = holder.root("regions").await?;
    let mut request = client.open_request();
    request.get().set_name(name);
    request.get().set_until_ms(until_ms);
    let answer = call(request).await?;
    read(|| answer.get()?.get_region())
}

/// Ends and erases a region.
pub async fn drop_region(region: &region::Client) -> Result<(), Fault> {
    call(region.drop_request()).await.map(|_| ())
}

/// What a region's service tells about it.
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    durable: bool,
    root: String,
    written_pages: u64,
}

impl Info {
    fn of(info: region_info::Reader<'_>) -> capnp::Result<Info> {
        Ok(Info {
            name: info.get_name()?.to_str()?.to_owned(),
            bytes: info.get_bytes(),
            durable: info.get_durable(),
            root: hex::encode(info.get_root()?),
            written_pages: info.get_written_pages(),
        })
    }

    fn keeping(&self) -> &'static str {
        if self.durable { "durable" } else { "volatile" }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "bytes": self.bytes, "durable": self.durable,
            "written_pages": self.written_pages,
        })
    }
}

/// Asks a region about itself.
pub async fn info(region: &region::Client) -> Result<Info, Fault> {
    let answer = call(region.info_request()).await?;
    read(|| Info::of(answer.get()?.get_info()?))
}

/// Writes the next `len` bytes of `source` from `offset` on.
pub async fn store(
    region: &region::Client,
    offset: u64,
    source: &mut InputReader,
    len: u64,
    bar: &ProgressBar,
) -> Result<(), Fault> {
    let mut flight = FuturesUnordered::new();
    for (start, size) in pieces(len) {
        if flight.len() == IN_FLIGHT {
            landed(flight.next().await, bar)?;
        }
        let mut request = region.write_request();
        request.get().set_offset(offset.saturating_add(start));
        source.fill(request.get().init_data(size))?;
        flight.push(async move { call(request).await.map(|_| u64::from(size)) });
    }
    while let Some(done) = flight.next().await {
        landed(Some(done), bar)?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn landed(done: Option<Result<u64, Fault>>, bar: &ProgressBar) -> Result<(), Fault> {
    if let Some(size) = done {
        bar.inc(size?);
    }
    Ok(())
}

/// Reads `len` bytes from `offset` on and hands them to `sink` in order.
pub async fn fetch(
    region: &region::Client,
    offset: u64,
    len: u64,
    bar: &ProgressBar,
    sink: &mut impl AsyncFnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut flight = FuturesOrdered::new();
    let mut rest = pieces(len);
    loop {
        while flight.len() < IN_FLIGHT {
            let Some((start, size)) = rest.next() else { break };
            let mut request = region.read_request();
            request.get().set_offset(offset.saturating_add(start));
            request.get().set_len(size);
            flight.push_back(call(request));
        }
        let Some(answer) = flight.next().await else { break };
        let answer = answer?;
        let data = read(|| answer.get()?.get_data())?;
        sink(data).await?;
        bar.inc(data.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Offset and length of each call that `len` bytes take.
fn pieces(len: u64) -> impl Iterator<Item = (u64, u32)> {
    let calls = len.div_ceil(CALL_BYTES);
    (0..calls).map(move |i| {
        let start = i * CALL_BYTES;
        // At most CALL_BYTES, which fits.
        (start, (len - start).min(CALL_BYTES) as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_cover_every_byte_once_and_none_is_too_large() {
        assert_eq!(pieces(0).count(), 0);
        assert_eq!(pieces(1).collect::<Vec<_>>(), [(0, 1)]);
        let all: Vec<_> = pieces((2 << 20) + 5).collect();
        assert_eq!(all, [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 5)]);
    }
}
