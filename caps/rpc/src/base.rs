//! The methods that every capability has, implemented once for every server object.

use capnp::private::capability::ClientHook;
use distos_abi::{Authority, ByteRange, Fault, LinkHash, Rights};
use distos_schemas::capability_capnp::capability;

use crate::facet::Facet;
use crate::faults::{authority_of, fail};
use crate::gift;
use crate::lending::{self, boot_ns, short};

/// A server object: an object behind a facet.
pub trait Faceted: 'static {
    /// The facet that this object is handed out through.
    fn facet(&self) -> &Facet;

    /// The same object behind another, weaker facet.
    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook>;
}

/// The implementation of [`capability`]'s methods for any [`Faceted`] object, which
/// [`serve_capability!`](crate::serve_capability) forwards to.
pub struct Base;

/// Longest name of a receiver that is looked at: `node/`, 64 digits, `/service/` and the longest vat's name
/// fit, and so does every agent of a tenant.
const MAX_NAME_BYTES: usize = 128;

impl Base {
    /// Answers `describe`.
    pub fn describe(
        facet: &Facet,
        results: &mut capability::DescribeResults,
    ) -> Result<(), capnp::Error> {
        // Whatever the answer will be: by then all that came before has come (`specs/handoff`).
        tracing::debug!(target: gift::TRACE, at = boot_ns(), session = facet.session().0, "flushed");
        // No right is needed, but a dead capability says that it is dead, and every call counts.
        facet.check(Rights::NONE).map_err(fail)?;
        facet.describe(facet.reply(results).init_info());
        Ok(())
    }

    /// Answers `attenuate`.
    pub async fn attenuate<S: Faceted>(
        server: &S,
        params: capability::AttenuateParams,
        mut results: capability::AttenuateResults,
    ) -> Result<(), capnp::Error> {
        let facet = server.facet();
        facet.check(Rights::NONE).map_err(fail)?;
        let wanted = {
            let params = params.get()?;
            authority_of(params.get_rights(), params.get_caveats()?)
        };
        let narrowed = facet.attenuate(wanted).await.map_err(fail)?;
        let hook = server.with_facet(narrowed);
        facet.reply(&mut results).set_cap(capnp::capability::FromClientHook::new(hook));
        Ok(())
    }

    /// Answers `revoke`.
    pub async fn revoke(
        facet: &Facet,
        mut results: capability::RevokeResults,
    ) -> Result<(), capnp::Error> {
        let done = facet.revoke().await.map_err(fail)?;
        // The capability is dead now, so this reply is not made in its name.
        let mut reply = results.get();
        reply.set_micros(done.micros);
        reply.set_descendants(done.descendants);
        reply.set_elsewhere_ms(short(done.elsewhere_ms));
        Ok(())
    }

    /// Answers `revokeLink`.
    pub async fn revoke_link(
        facet: &Facet,
        params: capability::RevokeLinkParams,
        mut results: capability::RevokeLinkResults,
    ) -> Result<(), capnp::Error> {
        // Not counted against a rate: nobody who shares it can use it up to put off a revocation.
        match facet.permits(Rights::NONE, EMPTY) {
            // The kernel says the same, once nothing below has an effect any more (C2).
            Ok(()) | Err(Fault::Revoked) => {}
            Err(fault) => return Err(fail(fault)),
        }
        let (link, expires_ms) = {
            let params = params.get()?;
            let link = LinkHash::try_from(params.get_link()?).map_err(fail)?;
            (link, params.get_expires_ms())
        };
        let done = facet.revoke_link(&link.0, expires_ms).await.map_err(fail)?;
        let mut reply = facet.reply(&mut results);
        reply.set_micros(done.micros);
        reply.set_descendants(done.descendants);
        reply.set_elsewhere_ms(short(done.elsewhere_ms));
        Ok(())
    }

    /// Answers `gift`.
    pub async fn gift(
        facet: &Facet,
        params: capability::GiftParams,
        mut results: capability::GiftResults,
    ) -> Result<(), capnp::Error> {
        let came = boot_ns();
        let (receiver, wanted) = {
            let params = params.get()?;
            let receiver = params.get_receiver()?.to_str().map_err(|_| malformed("receiver"))?;
            if receiver.len() > MAX_NAME_BYTES {
                return Err(malformed("receiver"));
            }
            let receiver = gift::receiver(receiver, facet.vat().epochs()).map_err(fail)?;
            (receiver, authority_of(params.get_rights(), params.get_caveats()?))
        };
        facet.check(Rights::NONE).map_err(fail)?;
        let ticket = facet.gift(receiver.as_str(), wanted).await.map_err(fail)?;
        tracing::debug!(
            target: gift::TRACE,
            at = boot_ns(),
            came,
            session = facet.session().0,
            ticket = %gift::traced(&ticket),
            "deposited"
        );
        facet.reply(&mut results).set_ticket(&ticket);
        Ok(())
    }

    /// Answers `persist`.
    pub async fn persist(
        facet: &Facet,
        params: capability::PersistParams,
        mut results: capability::PersistResults,
    ) -> Result<(), capnp::Error> {
        facet.check(Rights::NONE).map_err(fail)?;
        let wanted: Authority = {
            let params = params.get()?;
            authority_of(params.get_rights(), params.get_caveats()?)
        };
        let chain = facet.persist(wanted).await.map_err(fail)?;
        facet.reply(&mut results).set_chain(&chain);
        Ok(())
    }

    /// Answers `lend`.
    pub fn lend(facet: &Facet, results: &mut capability::LendResults) -> Result<(), capnp::Error> {
        facet.check(Rights::NONE).map_err(fail)?;
        lending::lend(facet, results)
    }
}

const EMPTY: ByteRange = ByteRange { start: 0, end: 0 };

fn malformed(what: &str) -> capnp::Error {
    fail(Fault::malformed(what))
}

/// Implements the base interface `Capability` for a server type that is [`Faceted`].
#[macro_export]
macro_rules! serve_capability {
    ($server:ty) => {
        impl $crate::private::capability_capnp::capability::Server for $server {
            async fn describe(
                self: ::std::rc::Rc<Self>,
                _: $crate::private::capability_capnp::capability::DescribeParams,
                mut results: $crate::private::capability_capnp::capability::DescribeResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::describe($crate::Faceted::facet(&*self), &mut results)
            }

            async fn attenuate(
                self: ::std::rc::Rc<Self>,
                params: $crate::private::capability_capnp::capability::AttenuateParams,
                results: $crate::private::capability_capnp::capability::AttenuateResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::attenuate(&*self, params, results).await
            }

            async fn revoke(
                self: ::std::rc::Rc<Self>,
                _: $crate::private::capability_capnp::capability::RevokeParams,
                results: $crate::private::capability_capnp::capability::RevokeResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::revoke($crate::Faceted::facet(&*self), results).await
            }

            async fn revoke_link(
                self: ::std::rc::Rc<Self>,
                params: $crate::private::capability_capnp::capability::RevokeLinkParams,
                results: $crate::private::capability_capnp::capability::RevokeLinkResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::revoke_link($crate::Faceted::facet(&*self), params, results).await
            }

            async fn gift(
                self: ::std::rc::Rc<Self>,
                params: $crate::private::capability_capnp::capability::GiftParams,
                results: $crate::private::capability_capnp::capability::GiftResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::gift($crate::Faceted::facet(&*self), params, results).await
            }

            async fn persist(
                self: ::std::rc::Rc<Self>,
                params: $crate::private::capability_capnp::capability::PersistParams,
                results: $crate::private::capability_capnp::capability::PersistResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::persist($crate::Faceted::facet(&*self), params, results).await
            }

            async fn lend(
                self: ::std::rc::Rc<Self>,
                _: $crate::private::capability_capnp::capability::LendParams,
                mut results: $crate::private::capability_capnp::capability::LendResults,
            ) -> Result<(), $crate::private::capnp::Error> {
                $crate::Base::lend($crate::Faceted::facet(&*self), &mut results)
            }
        }
    };
}
