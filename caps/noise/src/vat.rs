//! A vat that holders encrypt to.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use distos_abi::{Fault, VatName};
use distos_rpc::Vat;
use distos_rpc::seal::{Reader, Seal, Sealed, Writer};
use futures::future::LocalBoxFuture;
use tokio::io::BufReader;

use crate::card::{Card, Place};
use crate::handshake::{Own, StaticKey};
use crate::stream::accept;

/// Lets holders encrypt to `vat` from now on, whatever passes their connections on. Its static key is made when
/// somebody first does, is nowhere but here, and makes room for another when half of its card's time is over.
pub fn seal(vat: &Vat) {
    vat.set_seal(Rc::new(Keeper::default()));
}

#[derive(Default)]
struct Keeper {
    /// What the vat answers with, and when to make another.
    own: Rc<RefCell<Option<(Rc<Own>, u64)>>>,
}

impl Seal for Keeper {
    fn accept(
        &self,
        vat: &Vat,
        reader: Reader,
        writer: Writer,
    ) -> LocalBoxFuture<'static, Result<Sealed, Fault>> {
        let (own, vat) = (self.own.clone(), vat.clone());
        Box::pin(async move {
            let made = current(&own, &vat).await;
            // A frame is read in two parts.
            let reader = BufReader::new(reader);
            let accepted = accept(reader, writer, made.as_deref().ok()).await;
            // What kept a card from being made says more than that there is none.
            made?;
            let (holder, reader, writer) = accepted?;
            Ok(Sealed { holder, reader: Box::new(reader), writer: Box::new(writer) })
        })
    }
}

async fn current(kept: &RefCell<Option<(Rc<Own>, u64)>>, vat: &Vat) -> Result<Rc<Own>, Fault> {
    let now_ms = vat.now_ms();
    if let Some((own, renew_ms)) = &*kept.borrow()
        && now_ms < *renew_ms
    {
        return Ok(own.clone());
    }
    let key = StaticKey::fill(|secret| getrandom::fill(secret)).map_err(Fault::internal)?;
    let certified = vat.certify(&key.public().0).await?;
    let (until_ms, signature) = (certified.until_ms, certified.signature);
    let card = Card { until_ms, key: key.public(), signature };
    let place = Place { node: vat.node(), vat: VatName::new(vat.name().as_str())? };
    let own = Rc::new(Own::new(Arc::new(key), place, &card));
    let half_ms = until_ms.saturating_sub(now_ms) / 2;
    *kept.borrow_mut() = Some((own.clone(), now_ms.saturating_add(half_ms)));
    Ok(own)
}
