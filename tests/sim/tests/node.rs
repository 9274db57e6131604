//! The node of `images/single.toml` as threads of one process: the same kernel, services and
//! files, in a test that a debugger can step through.

use std::path::Path;
use std::time::Duration;

use distos_abi::Fault;
use distos_node::image::{self, Machine};
use distos_rpc::fault_of;
use distos_schemas::memory_capnp::{region, regions};
use distos_schemas::node_capnp::node;
use distos_sim::{Node, threads};

const DATA: &[u8] = b"kept across the end of the thread that wrote it";

fn plan(dir: &Path) -> distos_host::plan::Plan {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/single.toml");
    let text = std::fs::read_to_string(&file).expect("the image");
    let machine = Machine {
        builtins: &distos_node::vat::PROGRAMS,
        executable: &|path| path.exists(),
        exists: &|path| path.exists(),
    };
    image::parse(&text, &file, dir, &machine).unwrap_or_else(|errors| panic!("{errors}"))
}

async fn regions_of(node: &Node) -> Result<(distos_client::Connection, regions::Client), Fault> {
    let (file, owner) = node.operator()?;
    let connection = node.connect("memory").await?;
    let chain = &file.find("regions").ok_or_else(|| Fault::not_found("regions"))?.chain;
    let live = connection.restore(chain, &owner).await?;
    Ok((connection, live))
}

async fn read(region: &region::Client) -> Result<Vec<u8>, Fault> {
    let mut request = region.read_request();
    request.get().set_len(DATA.len() as u32);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    response.get().and_then(|r| r.get_data()).map(<[u8]>::to_vec).map_err(|e| fault_of(&e))
}

/// Otherwise a test on threads would be a test of another system.
#[test]
fn a_whole_node_runs_as_threads_and_keeps_what_it_acknowledged() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("loop");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let dir = tempfile::tempdir().expect("a directory");
        for boot in 0..2 {
            let node = Node::boot(plan(dir.path()), threads()).await.expect("the node starts");
            let (_connection, regions) = regions_of(&node).await.expect("regions");
            let region = if boot == 0 {
                let mut request = regions.create_request();
                request.get().set_name("kept");
                request.get().set_bytes(DATA.len() as u64);
                let made = request.send().promise.await.expect("a region");
                let region = made.get().and_then(|m| m.get_region()).expect("a region");
                let mut request = region.write_request();
                request.get().set_data(DATA);
                request.send().promise.await.expect("a write");
                region
            } else {
                let mut request = regions.open_request();
                request.get().set_name("kept");
                let opened = request.send().promise.await.expect("the region is there");
                opened.get().and_then(|m| m.get_region()).expect("a region")
            };
            assert_eq!(read(&region).await.expect("a read"), DATA);
            node.down().await.expect("it stops in order");
            assert_eq!(read(&region).await.expect_err("its vat has ended").code(), 17);
        }
    });
}

/// An operator who looks at such a node must not take it for a confined one.
#[test]
fn a_node_of_threads_says_that_it_confines_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("loop");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let dir = tempfile::tempdir().expect("a directory");
        let node = Node::boot(plan(dir.path()), threads()).await.expect("the node starts");
        let (file, owner) = node.operator().expect("the operator's files");
        let connection = node.connect("node").await.expect("the node service answers");
        let chain = &file.find("node").expect("the image grants it").chain;
        let live: node::Client = connection.restore(chain, &owner).await.expect("the node");
        let status = live.status_request().send().promise;
        let status = tokio::time::timeout(Duration::from_secs(30), status).await;
        let status = status.expect("in time").expect("a status");
        let status = status.get().and_then(|s| s.get_status()).expect("a status");
        let mut vats = 0;
        for vat in status.get_vats().expect("vats") {
            vats += 1;
            for protection in vat.get_protections().expect("protections") {
                assert!(!protection.get_enforced(), "{protection:?}");
            }
        }
        assert!(vats >= 6, "{vats} vats");
        node.down().await.expect("it stops in order");
    });
}
