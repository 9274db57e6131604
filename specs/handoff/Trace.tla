------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether a run is a behaviour of Handoff. A trace holds what a receiver, *)
(* a giver and a home did, in the order in which they did it: on one       *)
(* thread, or by the clock that all processes of a machine have.           *)
(*                                                                         *)
(* At every event at most one step is possible, so a run is a behaviour    *)
(* exactly if every behaviour of TSpec reaches its end. README lists the   *)
(* events and where the code has them.                                     *)
(***************************************************************************)
EXTENDS Handoff, TraceData, TLC

VARIABLES
    trace,  \* the trace: several are checked at once, each for itself
    i       \* the next event

tvars == <<vars, trace, i>>

Event == Traces[trace][i]
AtEnd == i > Len(Traces[trace])
Is(name) == ~AtEnd /\ Event.event = name

\* The giver has what it gives from a certificate.
TInit ==
    /\ trace \in 1..Len(Traces)
    /\ i = 1
    /\ Init
    /\ origin = "link"

Step ==
    /\ i' = i + 1
    /\ UNCHANGED trace
    /\ PrintT(<<"step", trace, i>>)  \* what stands behind the last one is refused

First(queue, what, n) == queue # <<>> /\ Head(queue) = Msg(what, n)

\* Whether the home says that it had an effect.
Took == Event.took <=> effects' # effects

TReceiver ==
    \/ Is("call") /\ Call /\ calls' = Event.n
    \/ Is("withdraw") /\ Withdraw(Event.t)
    \/ Is("withdrawn") /\ Withdrawn
    \/ Is("go_direct") /\ GoDirect

TGiver ==
    \/ Is("settle") /\ Settle
    \/ Is("forward") /\ First(ab, "call", Event.n) /\ Forward
    \/ Is("forward_flush") /\ First(ab, "flush", Event.t) /\ Forward
    \/ Is("deposit") /\ Deposit /\ drawn' = Event.t
    \/ Is("offer") /\ Offer(Event.t)
    \/ Is("release") /\ Release
    \/ Is("giver_dies") /\ GiverDies

THome ==
    \/ Is("proxied") /\ First(bc, "call", Event.n) /\ DeliverProxied /\ Took
    \/ Is("direct") /\ First(ac, "call", Event.n) /\ DeliverDirect /\ Took
    \/ Is("flushed") /\ First(bc, "flush", Event.t) /\ DeliverProxied
    \/ Is("deposited") /\ First(bc, "deposit", Event.t) /\ DeliverProxied /\ gift' # gift
    \/ Is("granted") /\ First(ac, "withdraw", Event.t) /\ DeliverDirect /\ taken' # taken
    \/ Is("revoke") /\ Revoke
    \/ Is("giver_session_ends") /\ GiverSessionEnds

\* Nobody records at the home that there was nothing to give; whoever asked does.
TNotFound ==
    /\ Is("not_found")
    /\ IF ca = <<>>
       THEN ac # <<>> /\ DeliverDirect /\ taken' = taken /\ UNCHANGED <<trace, i>>
       ELSE NotFound /\ Step

TStranger == Is("stranger") /\ StrangerWithdraws(Event.t) /\ taken' = taken

TNext == ((TReceiver \/ TGiver \/ THome \/ TStranger) /\ Step) \/ TNotFound

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

\* Every event of every trace is a step of the model.
Accepted == <>AtEnd
=============================================================================
