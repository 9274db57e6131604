//! A short program over a page of text, run for a tenant: in a sandbox that is there already,
//! beside a container that is made for it. Both run the same source.

use std::fs;
use std::path::Path;

use distos_abi::{Authority, Caveats, Rights, VatName};
use distos_client::handoff::{self, Home};
use distos_client::{Gift, fault_of};
use distos_e2e::Node;
use distos_schemas::memory_capnp::{region, regions};
use distos_schemas::scheduler_capnp::{TaskState, queue};

use super::{Failure, Outcome};
use crate::node::{self, Holder};
use crate::peers::runc;
use crate::report::Figure;
use crate::sample::Pairs;

const PAGE: u32 = 65536;
const WARM_UP: usize = 5;
const PAIRS: usize = 60;
/// Text that the program counts: short, so that starting it is what takes time.
const LINE: &str = "nothing holds authority that nobody handed it\n";

pub(super) fn run(_: &Path) -> Outcome {
    let node = Node::boot();
    node.tenants(&["red"]);
    let source = distos_e2e::repository().join("services/node/demo/wordcount.c");
    let mut container = runc::Peer::new(&node.work(), &source, &["map"])?;
    let input = node.file("input");
    fs::write(&input, LINE.repeat(20))?;
    node::on_one_thread(async {
        let red = Holder::load(&node, &node.file("red.cap"))?;
        let (_memory, regions) = red.restore::<regions::Client>("regions").await?;
        let (_scheduler, queue) = red.restore::<queue::Client>("queue").await?;
        let tenant = Tenant::new(&regions, queue, &fs::read(&input)?).await?;
        let expected = container.run(&input)?;
        let ours = async || {
            let got = tenant.count().await?;
            if got == expected { Ok(()) } else { Err(Failure::from("the task counted otherwise")) }
        };
        let peer = async || container.run(&input).map(drop);
        let mut peer = peer;
        Pairs::take_async(WARM_UP, ours, &mut peer).await?;
        let pairs = Pairs::take_async(PAIRS, ours, peer).await?;
        let (ours, peer) = pairs.medians();
        let figure = Figure::of("task", "WASM task, submit to result, warm, p50", ours, peer)
            .beside("runc run of the same program, static")
            .within(pairs.interval())
            .at_most(0.1)
            .noting("with the two gifts before it and the reading of its output after it");
        Ok(vec![figure])
    })
}

/// A tenant with what its jobs need.
struct Tenant {
    queue: queue::Client,
    input: region::Client,
    input_bytes: u64,
    output: region::Client,
    executor: String,
    module: Vec<u8>,
}

impl Tenant {
    async fn new(
        regions: &regions::Client,
        queue: queue::Client,
        text: &[u8],
    ) -> Result<Tenant, Failure> {
        let module = fs::read(distos_e2e::wordcount())?;
        let input = create(regions, "text", text.len() as u64).await?;
        let mut write = input.write_request();
        write.get().set_data(text);
        write.send().promise.await.map_err(|e| fault_of(&e))?;
        let output = create(regions, "counts", 2 * u64::from(PAGE)).await?;
        let answer = queue.executor_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let executor = answer.get()?.get_vat()?.to_str()?.to_owned();
        let input_bytes = text.len() as u64;
        Ok(Tenant { queue, input, input_bytes, output, executor, module })
    }

    async fn gift(&self, region: &region::Client, rights: Rights) -> Result<Gift, Failure> {
        let home = Home { node: None, vat: VatName::new("memory")? };
        let wanted = Authority { rights, caveats: Caveats::NONE };
        Ok(handoff::give(region, &self.executor, wanted, home).await?)
    }

    /// One job of one task, from its gifts to its output.
    async fn count(&self) -> Result<Vec<u8>, Failure> {
        let (input, output) = futures::try_join!(
            self.gift(&self.input, Rights::READ),
            self.gift(&self.output, Rights::READ.join(Rights::WRITE)),
        )?;
        let mut request = self.queue.submit_request();
        let mut spec = request.get().init_spec();
        spec.set_name("bench");
        spec.set_module(&self.module);
        input.write(spec.reborrow().init_input());
        spec.set_input_bytes(self.input_bytes);
        output.write(spec.reborrow().init_output());
        spec.reborrow().init_map_args(1).set(0, "map");
        let submitted = request.send();
        let job = submitted.pipeline.get_job();
        loop {
            let answer = job.wait_request().send().promise.await.map_err(|e| fault_of(&e))?;
            let status = answer.get()?.get_status()?;
            match status.get_state()? {
                TaskState::Queued | TaskState::Running => {}
                TaskState::Done => break,
                TaskState::Failed | TaskState::Cancelled => {
                    return Err(status.get_fault()?.to_str()?.into());
                }
            }
        }
        let (tasks, page) = futures::try_join!(job.tasks_request().send().promise, {
            let mut read = self.output.read_request();
            read.get().set_len(PAGE);
            read.send().promise
        },)?;
        let len = tasks.get()?.get_tasks()?.get(0).get_output_bytes() as usize;
        let page = page.get()?.get_data()?;
        Ok(page.get(..len).ok_or("an output longer than its page")?.to_vec())
    }
}

async fn create(
    regions: &regions::Client,
    name: &str,
    bytes: u64,
) -> Result<region::Client, Failure> {
    let mut request = regions.create_request();
    request.get().set_name(name);
    request.get().set_bytes(bytes);
    request.get().set_volatile(true);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(answer.get()?.get_region()?)
}
