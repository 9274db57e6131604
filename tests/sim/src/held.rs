//! Holds one call where a test wants it: at an await point of the server's method, before the
//! method begins, or after it ended and before its reply is sent.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::MessageSize;
use capnp::any_pointer;
use capnp::capability::{Promise, Request};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use distos_abi::Fault;
use distos_rpc::{Facet, Service};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::Notify;

/// Where a call is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Where the method awaits for the n-th time; 0 is before it begins. A method that awaits
    /// less often is held before its reply.
    Await(u32),
    /// The n-th call that it makes to the kernel: before the kernel sees it.
    Asked(u32),
    /// The same: before the service sees the kernel's answer.
    Answered(u32),
}

/// What a test and the places that can hold a call share.
#[derive(Clone, Default)]
pub struct Gate {
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    point: Cell<Option<Point>>,
    /// Calls to the kernel since the gate was armed.
    calls: Cell<u32>,
    /// Whether the call runs on to its end, and is held there.
    to_its_end: Cell<bool>,
    held: Cell<bool>,
    changed: Notify,
    wakers: RefCell<Vec<Waker>>,
}

impl Gate {
    /// The next call is held at `point`.
    pub fn arm(&self, point: Point) {
        self.state.point.set(Some(point));
        self.state.calls.set(0);
        self.state.to_its_end.set(false);
        self.state.held.set(false);
    }

    /// Resolves when the call is held.
    pub async fn held(&self) {
        loop {
            let changed = self.state.changed.notified();
            if self.state.held.get() {
                return;
            }
            changed.await;
        }
    }

    /// Whether a call is held.
    pub fn is_held(&self) -> bool {
        self.state.held.get()
    }

    /// Lets the call go on, and holds it again before its reply is sent.
    pub fn let_it_end(&self) {
        self.state.to_its_end.set(true);
        self.open();
    }

    /// Lets the call go on, whatever it does.
    pub fn release(&self) {
        self.state.point.set(None);
        self.state.to_its_end.set(false);
        self.open();
    }

    fn open(&self) {
        self.state.held.set(false);
        self.state.changed.notify_waiters();
        for waker in self.state.wakers.take() {
            waker.wake();
        }
    }

    /// Takes the point at which a method is to be held.
    fn take_await(&self) -> Option<u32> {
        let Some(Point::Await(at)) = self.state.point.get() else { return None };
        self.state.point.set(None);
        Some(at)
    }

    /// Whether calls to the kernel are counted: one of them is to be held.
    pub(crate) fn counts(&self) -> bool {
        matches!(self.state.point.get(), Some(Point::Asked(_) | Point::Answered(_)))
    }

    /// The number of the next call to the kernel since the gate was armed.
    pub(crate) fn next_call(&self) -> u32 {
        let number = self.state.calls.get();
        self.state.calls.set(number + 1);
        number
    }

    /// Whether this is the point at which something is to be held.
    pub(crate) fn holds(&self, point: Point) -> bool {
        let wanted = self.state.point.get() == Some(point);
        if wanted {
            self.state.point.set(None);
        }
        wanted
    }

    /// Holds the caller until it is released.
    pub(crate) async fn stop(&self) {
        self.hold();
        poll_fn(|cx| self.poll_released(cx)).await;
    }

    fn hold(&self) {
        self.state.held.set(true);
        self.state.changed.notify_waiters();
    }

    fn poll_released(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.held.get() {
            self.state.wakers.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// A service whose calls go through a gate.
pub struct Held {
    /// The service as production runs it.
    pub inner: Rc<dyn Service>,
    /// The gate.
    pub gate: Gate,
}

impl Service for Held {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        let inner = self.inner.clone().open(facet)?;
        Ok(Box::new(HeldHook { inner, gate: self.gate.clone() }))
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        self.inner.clone().drain()
    }
}

/// A capability of that service.
struct HeldHook {
    inner: Box<dyn ClientHook>,
    gate: Gate,
}

impl ClientHook for HeldHook {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(HeldHook { inner: self.inner.add_ref(), gate: self.gate.clone() })
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        self.inner.new_call(interface_id, method_id, size_hint)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), capnp::Error> {
        match self.gate.take_await() {
            None => self.inner.call(interface_id, method_id, params, results),
            Some(at) => {
                let (inner, gate) = (self.inner.add_ref(), self.gate.clone());
                Promise::from_future(async move {
                    if at == 0 {
                        gate.stop().await;
                    }
                    let call = inner.call(interface_id, method_id, params, results);
                    held(call, &gate, at).await
                })
            }
        }
    }

    fn get_brand(&self) -> usize {
        self.inner.get_brand()
    }

    fn get_ptr(&self) -> usize {
        self.inner.get_ptr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, capnp::Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), capnp::Error> {
        Promise::ok(())
    }
}

/// Polls `call` up to its `at`-th await, then not before it is released; and holds it before its
/// reply, unless it was released for good.
async fn held(
    mut call: Promise<(), capnp::Error>,
    gate: &Gate,
    at: u32,
) -> Result<(), capnp::Error> {
    let (mut awaits, mut stopped) = (0, at == 0);
    let outcome = poll_fn(|cx| {
        if gate.poll_released(cx).is_pending() {
            return Poll::Pending;
        }
        let polled = call.poll_unpin(cx);
        if polled.is_pending() {
            awaits += 1;
            if awaits == at {
                stopped = true;
                gate.hold();
                return gate.poll_released(cx).map(|()| Ok(()));
            }
        }
        polled
    });
    let outcome = outcome.await;
    if !stopped {
        gate.stop().await;
    }
    while gate.state.to_its_end.take() {
        gate.stop().await;
    }
    outcome
}
