//! Regions over RPC: what each capability allows, checked at dispatch and at commit (C1, C2).

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{Authority, ByteRange, CapId, Caveats, Fault, Meter, ObjectId, Rights};
use distos_quic::{Bulk, Page};
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::memory_capnp::{region, region_info, regions};
use distos_types::kind::{REGION, REGIONS};
use futures::future::LocalBoxFuture;
use futures::stream::{self, LocalBoxStream};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::jobs::Piece;
use crate::state::{Facts, MAX_CALL_BYTES, checked_bytes, checked_name};
use crate::store::{Limits, Store, Summary};

/// What the maker of a region may do with it.
const MAKER: Rights = Rights::READ.join(Rights::WRITE).join(Rights::DROP);
/// For how long at most a region stays open beyond the session in which it was opened, in milliseconds: a day.
const LASTING_MS: u64 = 24 * 3600 * 1000;
/// Parts of a stream that are read while what comes before them is sent.
const READ_AHEAD: usize = 2;
const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// A region that could not be made, for want of quota or of space on the disk, is told after a pause:
/// nothing is different the moment after, and who tries again at once keeps others waiting.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// The memory service.
pub(crate) struct Memory {
    vat: Vat,
    store: Rc<Store>,
}

/// Opens the store and brings it and the kernel to agree on which regions there are.
///
/// # Errors
/// The image gives it no directory, or its files are damaged or made by a newer version.
pub async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    let dir = vat.data_dir().ok_or_else(|| {
        Fault::malformed("the image gives the memory service no directory: data = true")
    })?;
    let mut limits = Limits::default();
    if let Some(text) = vat.param("volatile_bytes") {
        limits.volatile_bytes = text
            .parse()
            .map_err(|_| Fault::malformed(format!("volatile_bytes is a number, not '{text}'")))?;
    }
    let store = Store::open_directory(dir, limits)?;
    reconcile(&vat, &store).await?;
    distos_noise::seal(&vat);
    tokio::task::spawn_local(distos_quic::attend(vat.clone()));
    Ok(Rc::new(Memory { vat, store }))
}

/// A region that no live capability names and that holds nothing was being made when the vat
/// ended: it is erased. One that holds data is kept, for what was acknowledged may only end by
/// being dropped (M3): its tenant reaches it by name through whatever capability to regions it
/// has or gets. A capability without a region is revoked.
async fn reconcile(vat: &Vat, store: &Rc<Store>) -> Result<(), Fault> {
    let objects = vat.objects().await?;
    let mut live: BTreeSet<ObjectId> =
        objects.into_iter().filter(|(kind, ..)| *kind == REGION).map(|(_, o, _)| o).collect();
    for Summary { object, facts, written_pages } in store.found() {
        let named = live.remove(&object);
        if named || written_pages > 0 {
            vat.meters().restore(&facts.lineage, Meter::Bytes, facts.bytes);
            store.activate(object);
            if !named {
                let why =
                    format!("region {object} '{}' is kept: no capability names it", facts.name);
                vat.report("region", facts.tenant, CapId(0), why);
            }
        } else {
            tracing::info!(%object, "a region that was never finished is erased");
            // A disk that is full must not keep the others from their regions; the next start
            // tries again, and until then nobody sees this one.
            if let Err(fault) = store.erase(object).await {
                tracing::warn!(%object, %fault, "a region could not be erased");
            }
        }
    }
    for object in live {
        vat.revoke_object(REGION, object).await?;
    }
    Ok(())
}

impl Service for Memory {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        match (facet.kind(), facet.object()) {
            (REGIONS, ObjectId::ROOT) => Ok(RegionsServer { memory: self, facet }.hook()),
            (REGION, object) => {
                self.store.summary(object)?;
                Ok(RegionServer { memory: self, facet }.hook())
            }
            _ => Err(Fault::not_found("the memory service has no such object")),
        }
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move { self.store.quiet().await })
    }
}

impl Memory {
    /// Makes a region for the holder of `facet`: charge, prepare, mint, activate.
    async fn create(&self, facet: &Facet, facts: Facts) -> Result<(Facet, Vec<u8>), Fault> {
        let bytes = facts.bytes;
        let lineage = facts.lineage.clone();
        facet.charge(Meter::Bytes, bytes)?;
        let made = self.create_charged(facet, facts).await;
        if made.is_err() {
            self.vat.meters().refund(&lineage, Meter::Bytes, bytes);
        }
        made
    }

    async fn create_charged(&self, facet: &Facet, facts: Facts) -> Result<(Facet, Vec<u8>), Fault> {
        let object = self.store.create(facts).await?;
        let made = self.hand_out(facet, object).await;
        match made {
            Ok(_) => self.store.activate(object),
            Err(_) => self.take_back(object).await,
        }
        made
    }

    async fn hand_out(&self, facet: &Facet, object: ObjectId) -> Result<(Facet, Vec<u8>), Fault> {
        let minted = facet.mint(REGION, object, below(facet, MAKER)).await?;
        // A vat of this node has no key: there is nothing to bind a sturdy capability to.
        let chain = match minted.holder() {
            Some(_) => minted.persist(minted.authority()).await?,
            None => Vec::new(),
        };
        Ok((minted, chain))
    }

    /// Undoes a creation that failed. What can't be undone now is at the next start.
    async fn take_back(&self, object: ObjectId) {
        let ended = self.vat.revoke_object(REGION, object).await;
        let erased = self.store.erase(object).await;
        if let Err(fault) = ended.map(drop).and(erased.map(drop)) {
            tracing::warn!(%fault, %object, "a region that could not be made is left for the next start");
        }
    }

    /// A capability to one of the tenant's regions with those rights that `facet` has itself (C1): for this session, or
    /// beyond it until `until_ms`, unless that is 0.
    async fn open_region(
        &self,
        facet: &Facet,
        object: ObjectId,
        until_ms: u64,
    ) -> Result<Facet, Fault> {
        let rights = facet.authority().rights.meet(MAKER);
        if rights == Rights::NONE {
            return Err(Fault::denied(Rights::READ));
        }
        let mut authority = below(facet, rights);
        if until_ms == 0 {
            return facet.reach(REGION, object, authority).await;
        }
        // What was derived within a session ends what was opened by it, and minting goes by what is above.
        if !facet.is_restored() {
            return Err(Fault::malformed(
                "untilMs: only by a capability that was restored from a chain and not weakened since",
            ));
        }
        let most_ms = self.vat.now_ms().saturating_add(LASTING_MS);
        if until_ms > most_ms {
            return Err(Fault::malformed("untilMs: at most a day from now"));
        }
        let caveats = &mut authority.caveats;
        caveats.expires_ms = caveats.expires_ms.min(until_ms);
        facet.mint(REGION, object, authority).await
    }

    /// Ends every capability to a region, then erases it, then gives its bytes back.
    async fn drop_region(&self, object: ObjectId, by: &Facet) -> Result<(), Fault> {
        self.vat.revoke_object(REGION, object).await?;
        let facts = self.store.erase(object).await?;
        self.vat.meters().refund(&facts.lineage, Meter::Bytes, facts.bytes);
        let detail = format!("region {object} '{}' of {} bytes dropped", facts.name, facts.bytes);
        self.vat.report("region", facts.tenant, by.cap_id(), detail);
        Ok(())
    }
}

/// `rights` over a whole region, for no longer than `facet` lasts.
fn below(facet: &Facet, rights: Rights) -> Authority {
    let expires_ms = facet.authority().caveats.expires_ms;
    Authority { rights, caveats: Caveats { expires_ms, ..Caveats::NONE } }
}

/// Runs a change to its end even if its caller goes away in between.
async fn to_its_end<T: 'static>(
    change: impl Future<Output = Result<T, Fault>> + 'static,
) -> Result<T, capnp::Error> {
    tokio::task::spawn_local(change)
        .await
        .map_err(Fault::internal)
        .and_then(|done| done)
        .map_err(fail)
}

/// A tenant's place to make regions.
struct RegionsServer {
    memory: Rc<Memory>,
    facet: Facet,
}

impl RegionsServer {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<regions::Client, _>(self).into_client_hook()
    }
}

impl Faceted for RegionsServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        RegionsServer { memory: self.memory.clone(), facet }.hook()
    }
}

serve_capability!(RegionsServer);

impl regions::Server for RegionsServer {
    async fn create(
        self: Rc<Self>,
        params: regions::CreateParams,
        mut results: regions::CreateResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CREATE).map_err(fail)?;
        if self.memory.vat.draining() {
            return Err(fail(Fault::unavailable(1_000, "this node is draining")));
        }
        let facts = self.facts(params.get()?).map_err(fail)?;
        self.memory.store.check_new(facts.tenant, &facts.name).map_err(fail)?;
        let (this, new) = (self.clone(), facts.clone());
        let made = to_its_end(async move { this.memory.create(&this.facet, new).await }).await;
        if made.is_err() {
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
        let (minted, chain) = made?;
        let detail =
            format!("region {} '{}' of {} bytes created", minted.object(), facts.name, facts.bytes);
        self.memory.vat.report("region", facts.tenant, minted.cap_id(), detail);
        let mut reply = self.facet.reply(&mut results);
        let server = RegionServer { memory: self.memory.clone(), facet: minted };
        reply.set_region(FromClientHook::new(server.hook()));
        reply.set_chain(&chain);
        Ok(())
    }

    async fn open(
        self: Rc<Self>,
        params: regions::OpenParams,
        mut results: regions::OpenResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let (name, until_ms) = {
            let params = params.get()?;
            (name_of(params.get_name()).map_err(fail)?, params.get_until_ms())
        };
        let object = self.memory.store.by_name(self.facet.tenant(), &name);
        let object = object.map_err(|fault| fail(self.facet.refused(fault)))?;
        let facet = self.memory.open_region(&self.facet, object, until_ms).await.map_err(fail)?;
        let server = RegionServer { memory: self.memory.clone(), facet };
        self.facet.reply(&mut results).set_region(FromClientHook::new(server.hook()));
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        _: regions::ListParams,
        mut results: regions::ListResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let found = self.memory.store.list(self.facet.tenant());
        let mut list = self.facet.reply(&mut results).init_regions(found.len() as u32);
        for (at, summary) in found.iter().enumerate() {
            describe(summary, list.reborrow().get(at as u32));
        }
        Ok(())
    }

    async fn usage(
        self: Rc<Self>,
        _: regions::UsageParams,
        mut results: regions::UsageResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::NONE).map_err(fail)?;
        let used = self.memory.vat.meters().used(self.charged(), Meter::Bytes);
        let mut reply = self.facet.reply(&mut results);
        reply.set_used_bytes(used);
        reply.set_quota_bytes(self.facet.authority().caveats.quota_bytes);
        Ok(())
    }
}

impl RegionsServer {
    fn facts(&self, params: regions::create_params::Reader<'_>) -> Result<Facts, Fault> {
        Ok(Facts {
            name: name_of(params.get_name())?,
            tenant: self.facet.tenant(),
            bytes: checked_bytes(params.get_bytes())?,
            durable: !params.get_volatile(),
            lineage: self.facet.lineage(),
        })
    }

    /// The capability whose meter tells what the holder uses: the nearest one that outlives this
    /// session under the same quota.
    fn charged(&self) -> CapId {
        let lineage = self.facet.lineage();
        lineage.iter().rev().nth(1).copied().unwrap_or_else(|| self.facet.cap_id())
    }
}

fn name_of(text: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, Fault> {
    let text = text.map_err(|_| Fault::malformed("the name cannot be read"))?;
    let text = text.to_str().map_err(|_| Fault::malformed("the name is not UTF-8"))?;
    checked_name(text).map(str::to_owned)
}

fn describe(summary: &Summary, mut info: region_info::Builder<'_>) {
    info.set_name(&summary.facts.name);
    info.set_bytes(summary.facts.bytes);
    info.set_durable(summary.facts.durable);
    info.set_object(summary.object.0);
    info.set_written_pages(summary.written_pages);
}

/// The pages of a range, read ahead of whoever takes them.
fn pages(
    memory: Rc<Memory>,
    object: ObjectId,
    range: ByteRange,
) -> LocalBoxStream<'static, Result<Page, Fault>> {
    let chunk = MAX_CALL_BYTES / 2;
    // Whole pages, as far as the range has them: those are sent with the hash that they have.
    let first = range.start / chunk * chunk;
    let starts = (first..range.end).step_by(chunk as usize);
    let chunks = starts.map(move |start| ByteRange {
        start: start.max(range.start),
        end: (start + chunk).min(range.end),
    });
    let read = move |chunk| {
        let memory = memory.clone();
        // To its end, also while nobody takes what came before: until then others wait for its place in the store.
        let read = async move { memory.store.pieces(object, chunk).await };
        async move {
            let read = tokio::task::spawn_local(read);
            read.await.unwrap_or_else(|error| Err(Fault::internal(error)))
        }
    };
    let pages = |pieces: Vec<Piece>| {
        let page = |piece: Piece| Ok(Page { hash: piece.hash, bytes: piece.bytes });
        stream::iter(pieces.into_iter().map(page))
    };
    stream::iter(chunks).map(read).buffered(READ_AHEAD).map_ok(pages).try_flatten().boxed_local()
}

/// One region, or a byte range of it.
struct RegionServer {
    memory: Rc<Memory>,
    facet: Facet,
}

impl RegionServer {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<region::Client, _>(self).into_client_hook()
    }

    /// Why a call failed. A region that was dropped under the call looks damaged or absent; then
    /// the reason is that the capability ended.
    fn refused(&self, need: Rights, range: ByteRange, fault: Fault) -> Fault {
        match fault {
            Fault::Corrupt(_) | Fault::NotFound(_) => {
                self.facet.commit(need, range, || ()).err().unwrap_or(fault)
            }
            _ => fault,
        }
    }
}

impl Faceted for RegionServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        RegionServer { memory: self.memory.clone(), facet }.hook()
    }
}

serve_capability!(RegionServer);

impl region::Server for RegionServer {
    async fn read(
        self: Rc<Self>,
        params: region::ReadParams,
        mut results: region::ReadResults,
    ) -> Result<(), capnp::Error> {
        let (offset, len) = {
            let params = params.get()?;
            (params.get_offset(), u64::from(params.get_len()))
        };
        let range = range_of(offset, len).map_err(fail)?;
        self.facet.check_range(Rights::READ, range).map_err(fail)?;
        let refused = |fault| fail(self.refused(Rights::READ, range, fault));
        let (store, object) = (&self.memory.store, self.facet.object());
        if let Some(read) = store.read_now(object, range, Instant::now()).map_err(refused)? {
            let mut reply = self.facet.reply(&mut results);
            read.copy_into(reply.reborrow().init_data(len as u32)).map_err(refused)?;
            return Ok(());
        }
        let data = store.read(object, range).await.map_err(refused)?;
        self.facet.reply(&mut results).set_data(&data);
        Ok(())
    }

    async fn write(
        self: Rc<Self>,
        params: region::WriteParams,
        mut results: region::WriteResults,
    ) -> Result<(), capnp::Error> {
        let (offset, range, data) = {
            let params = params.get()?;
            let data = params.get_data()?;
            let range = range_of(params.get_offset(), data.len() as u64).map_err(fail)?;
            self.facet.arrived(range.start);
            self.facet.check_range(Rights::WRITE, range).map_err(fail)?;
            (params.get_offset(), range, data.to_vec())
        };
        // The message is as large as the data, and the data is copied.
        drop(params);
        let facet = self.facet.clone();
        let gate = move |publish: &mut dyn FnMut()| {
            let published = facet.commit(Rights::WRITE, range, publish);
            published.inspect(|()| facet.took_effect(offset))
        };
        let written = self.memory.store.write(self.facet.object(), offset, data, gate).await;
        written.map_err(|fault| fail(self.refused(Rights::WRITE, range, fault)))?;
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn stream(
        self: Rc<Self>,
        params: region::StreamParams,
        mut results: region::StreamResults,
    ) -> Result<(), capnp::Error> {
        let (offset, len) = {
            let params = params.get()?;
            (params.get_offset(), params.get_len())
        };
        let range = ByteRange::at(offset, len).filter(|range| !range.is_empty());
        let range = range.ok_or_else(|| fail(Fault::malformed("a stream has bytes")))?;
        self.facet.check_range(Rights::READ, range).map_err(fail)?;
        let object = self.facet.object();
        let bytes = self.memory.store.summary(object).map_err(fail)?.facts.bytes;
        if range.end > bytes {
            return Err(fail(Fault::malformed(format!("the region has {bytes} bytes"))));
        }
        let pages = pages(self.memory.clone(), object, range);
        let bulk = Bulk::of(&self.memory.vat);
        let ticket = bulk.offer(self.facet.clone(), (Rights::READ, range), pages).map_err(fail)?;
        self.facet.reply(&mut results).set_ticket(&ticket);
        Ok(())
    }

    async fn info(
        self: Rc<Self>,
        _: region::InfoParams,
        mut results: region::InfoResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let object = self.facet.object();
        let root = match self.memory.store.root(object).await {
            Ok(root) => root.to_vec(),
            // There is no content to speak of; the rest can still be told.
            Err(Fault::Corrupt(_)) => Vec::new(),
            Err(fault) => return Err(fail(self.refused(Rights::READ, NO_BYTES, fault))),
        };
        let summary = self.memory.store.summary(object).map_err(fail)?;
        let mut info = self.facet.reply(&mut results).init_info();
        describe(&summary, info.reborrow());
        info.set_root(&root);
        Ok(())
    }

    async fn drop(
        self: Rc<Self>,
        _: region::DropParams,
        _: region::DropResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::DROP).map_err(fail)?;
        self.facet.commit(Rights::DROP, NO_BYTES, || ()).map_err(fail)?;
        let this = self.clone();
        let object = self.facet.object();
        to_its_end(async move { this.memory.drop_region(object, &this.facet).await }).await
    }
}

fn range_of(offset: u64, len: u64) -> Result<ByteRange, Fault> {
    if len > MAX_CALL_BYTES {
        return Err(Fault::malformed(format!("a call moves at most {MAX_CALL_BYTES} bytes")));
    }
    ByteRange::at(offset, len).ok_or_else(|| Fault::malformed("the range passes 2^64"))
}
