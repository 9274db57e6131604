//! A vat that holders encrypt to.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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

/// What a vat answers with, and when to make another.
struct Kept {
    own: Rc<Own>,
    renew_ms: u64,
}

#[derive(Default)]
struct Keeper {
    kept: Rc<RefCell<Option<Kept>>>,
}

impl Seal for Keeper {
    fn accept(
        &self,
        vat: &Vat,
        reader: Reader,
        writer: Writer,
    ) -> LocalBoxFuture<'static, Result<Sealed, Fault>> {
        let (kept, vat) = (self.kept.clone(), vat.clone());
        Box::pin(async move {
            let made = current(&kept, &vat).await;
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

async fn current(kept: &Rc<RefCell<Option<Kept>>>, vat: &Vat) -> Result<Rc<Own>, Fault> {
    let now_ms = vat.now_ms();
    if let Some(known) = &*kept.borrow()
        && now_ms < known.renew_ms
    {
        return Ok(known.own.clone());
    }
    let key = StaticKey::fill(|secret| getrandom::fill(secret)).map_err(Fault::internal)?;
    let certified = vat.certify(&key.public().0).await?;
    let (until_ms, signature) = (certified.until_ms, certified.signature);
    let card = Card { until_ms, key: key.public(), signature };
    let place = Place { node: vat.node(), vat: VatName::new(vat.name().as_str())? };
    let own = Rc::new(Own::new(Arc::new(key), place, &card));
    let half_ms = until_ms.saturating_sub(now_ms) / 2;
    let renew_ms = now_ms.saturating_add(half_ms);
    *kept.borrow_mut() = Some(Kept { own: own.clone(), renew_ms });
    let (weak, lasts) = (Rc::downgrade(kept), Duration::from_millis(2 * half_ms));
    // Also where nobody comes any more: whoever has the key knows who had come.
    tokio::task::spawn_local(async move {
        tokio::time::sleep(lasts).await;
        if let Some(kept) = weak.upgrade() {
            let is_over = |kept: &mut Kept| kept.renew_ms <= renew_ms;
            drop(kept.borrow_mut().take_if(is_over));
        }
    });
    Ok(own)
}
