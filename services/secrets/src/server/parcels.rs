//! What comes in parcels, and to whom parcels go out.

use std::rc::Rc;

use distos_abi::{Fault, HolderKey, Rights};
use distos_delivery::{Content, Purpose, Recipient, RecipientKey, request_message};
use distos_noise::{CARD_BYTES, Card, StaticPublic};
use distos_rpc::{Facet, fault_of};
use distos_schemas::secrets_capnp::recipient;
use distos_types::kind::SECRET;
use distos_types::verify_signature;
use zeroize::Zeroizing;

use super::Broker;
use crate::record::Holder;

/// To whom parcels to the broker are sealed, and what its node says of that.
pub(super) struct Own {
    recipient: Recipient,
    card: [u8; CARD_BYTES],
    renew_ms: u64,
}

impl Broker {
    /// The key that a holder asks to be answered with, if the holder of `facet` has signed it.
    pub(super) fn recipient(
        &self,
        facet: &Facet,
        to: recipient::Reader<'_>,
    ) -> Result<(HolderKey, RecipientKey), Fault> {
        let holder = keyed(facet)?;
        self.signed(facet, holder, to)
    }

    /// The same of a reader of one secret. Whoever took that as a gift asks with the key that it wants: the connection by
    /// which it took that is its own, and is who it is.
    pub(super) fn reader_key(
        &self,
        facet: &Facet,
        to: recipient::Reader<'_>,
    ) -> Result<(HolderKey, RecipientKey), Fault> {
        if let Some(holder) = facet.holder() {
            return self.signed(facet, holder, to);
        }
        let holder = holder_of(facet)?;
        let key = to.get_key().map_err(|e| fault_of(&e))?;
        Ok((holder, RecipientKey::from_slice(key)?))
    }

    fn signed(
        &self,
        facet: &Facet,
        holder: HolderKey,
        to: recipient::Reader<'_>,
    ) -> Result<(HolderKey, RecipientKey), Fault> {
        let read = || -> capnp::Result<_> { Ok((to.get_key()?, to.get_signature()?)) };
        let (key, signature) = read().map_err(|e| fault_of(&e))?;
        let key = RecipientKey::from_slice(key)?;
        let message = request_message(self.vat.node(), self.vat.name(), facet.object(), key);
        verify_signature(holder, &message, signature)
            .map_err(|fault| facet.refused(fault))
            .map(|()| (holder, key))
    }

    pub(super) fn purpose<'a>(&'a self, holder: HolderKey, content: Content<'a>) -> Purpose<'a> {
        Purpose { node: self.vat.node(), vat: self.vat.name(), holder, content }
    }

    /// What is in a parcel from the holder of `facet`.
    pub(super) fn unwrap(
        &self,
        facet: &Facet,
        content: Content<'_>,
        parcel: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let purpose = self.purpose(keyed(facet)?, content);
        let own = self.own.borrow();
        let opened = own.iter().rev().find_map(|own| own.recipient.open(&purpose, parcel).ok());
        let none = || {
            Fault::Unauthenticated(
                "a parcel is sealed to no key of the secret broker's, or for something else: ask for its card"
                    .into(),
            )
        };
        opened.ok_or_else(none)
    }

    /// The card of the key to which parcels are sealed, made anew when half of its time is over.
    pub(super) async fn card(&self) -> Result<[u8; CARD_BYTES], Fault> {
        let now_ms = self.vat.now_ms();
        let newest = self.own.borrow().last().cloned();
        if let Some(own) = newest.filter(|own| now_ms < own.renew_ms) {
            return Ok(own.card);
        }
        let recipient = Recipient::new()?;
        let key = StaticPublic(recipient.key().0);
        let certified = self.vat.certify(&key.0).await?;
        // Somebody else may have made another meanwhile: only two are kept, and this one nobody knows.
        let newest = self.own.borrow().last().cloned();
        if let Some(own) = newest.filter(|own| now_ms < own.renew_ms) {
            return Ok(own.card);
        }
        let (until_ms, signature) = (certified.until_ms, certified.signature);
        let card = Card { until_ms, key, signature }.encode();
        let renew_ms = now_ms.saturating_add(until_ms.saturating_sub(now_ms) / 2);
        let mut own = self.own.borrow_mut();
        own.push(Rc::new(Own { recipient, card, renew_ms }));
        let before = own.len().saturating_sub(2);
        own.drain(..before);
        Ok(card)
    }
}

/// By what key a reader is known: its own, or none if it took its capability as a gift. An edge of a vat opens no secret
/// and makes none, so what has no key and is to one secret was given.
pub(super) fn holder_of(facet: &Facet) -> Result<HolderKey, Fault> {
    match facet.holder() {
        Some(key) => Ok(key),
        None if facet.kind() == SECRET => Ok(Holder::NO_KEY),
        None => Err(facet.refused(Fault::denied(Rights::READ))),
    }
}

/// The key of a facet's holder. A vat's edge has none, and nothing can be sealed to it.
pub(super) fn keyed(facet: &Facet) -> Result<HolderKey, Fault> {
    facet.holder().ok_or_else(|| facet.refused(Fault::denied(Rights::READ)))
}
