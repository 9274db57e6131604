//! A tenant's program that gives away what it holds (`specs/handoff`): it passes on what is called at its socket to a
//! region, leaves a gift at the region's home for whomever it is asked to give to, and says each of its steps.
//! `distos-e2e-giver HOME CAPABILITY KEY SOCKET`: the socket of the region's home, a capability file and its key, and
//! the socket to make. It says `listens` when that is there, and goes on until it is killed.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use capnp::capability::FromClientHook as _;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_client::handoff::{self, Home};
use distos_client::{Connection, authority_of};
use distos_e2e::holder::in_this_process;
use distos_e2e::steps::step;
use distos_rpc::fail;
use distos_rpc::transport::{self, Bounds, Driven};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::region;
use distos_types::{CapFile, HolderSecret};
use tokio::net::UnixListener;

fn main() {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [home, file, key, socket] = &args[..] else { panic!("HOME CAPABILITY KEY SOCKET") };
    in_this_process(give(home, file, key, socket));
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

async fn give(home: &Path, file: &Path, key: &Path, socket: &Path) {
    let file = CapFile::parse(&text(file)).expect("a capability file");
    let secret = HolderSecret::from_file_text(&text(key)).expect("a secret key");
    let chain = &file.find("region").expect("a capability to a region").chain;
    // What it gives outlives this connection: it hangs from the certificate.
    let connection = Connection::open(home).await.expect("the region's home");
    let region: region::Client = connection.restore(chain, &secret).await.expect("the region");
    tell("settle", "");
    let root = chain.root();
    let place = Home { node: Some(root.node), vat: root.vat.clone() };
    let listener = UnixListener::bind(socket).expect("a socket of its own");
    say("listens");
    let mut lines = Vec::new();
    loop {
        let (stream, _) = listener.accept().await.expect("somebody who connects");
        let proxy = Proxy { home: region.clone(), place: place.clone() };
        let proxy: region::Client = capnp_rpc::new_client(proxy);
        let proxy = capnp::capability::Client::new(proxy.into_client_hook());
        let system = transport::start(stream, Side::Server, Some(proxy), Bounds::EDGE);
        lines.push(Driven::new(system));
    }
}

/// Says something as a whole, so that it is said however this ends.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever started this is gone, then.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

fn tell(kind: &str, fields: &str) {
    say(&step("handoff", kind, fields));
}

/// What whoever is connected calls, for as long as it is.
struct Proxy {
    home: region::Client,
    place: Home,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        tell("release", "");
    }
}

impl capability::Server for Proxy {
    async fn describe(
        self: Rc<Self>,
        _: capability::DescribeParams,
        _: capability::DescribeResults,
    ) -> Result<(), capnp::Error> {
        tell("forward_flush", "");
        let home: capability::Client = self.home.clone().cast_to();
        home.describe_request().send().promise.await.map(drop)
    }

    async fn gift(
        self: Rc<Self>,
        params: capability::GiftParams,
        mut results: capability::GiftResults,
    ) -> Result<(), capnp::Error> {
        let (receiver, wanted) = {
            let params = params.get()?;
            let wanted = authority_of(params.get_rights(), params.get_caveats()?);
            (params.get_receiver()?.to_string()?, wanted)
        };
        tell("deposit", "");
        let gift = handoff::give(&self.home, &receiver, wanted, self.place.clone()).await;
        let gift = gift.map_err(fail)?;
        tell("offer", &format!("ticket={}", gift.traced()));
        results.get().set_ticket(&gift.ticket);
        Ok(())
    }
}

impl region::Server for Proxy {
    async fn write(
        self: Rc<Self>,
        params: region::WriteParams,
        _: region::WriteResults,
    ) -> Result<(), capnp::Error> {
        let mut request = self.home.write_request();
        {
            let params = params.get()?;
            tell("forward", &format!("n={}", params.get_offset()));
            request.get().set_offset(params.get_offset());
            request.get().set_data(params.get_data()?);
        }
        request.send().promise.await.map(drop)
    }
}
