-------------------------------- MODULE Handoff --------------------------------
(***************************************************************************)
(* Three-party handoff. A calls an object at home C through B, which has a *)
(* capability to it and proxies. B deposits a gift for A at C and gives A  *)
(* the ticket; A connects to C itself, withdraws, and calls directly. Then *)
(* B is not needed any more. Promises C2 (revoking what B has ends what A  *)
(* got, be B there or not), C4 (a stolen ticket is useless), N3 (a ticket  *)
(* works once), and that A's calls stay in order.                          *)
(*                                                                         *)
(* A  receiver  A Call travels the path that A has. After the withdrawal A *)
(*              holds its calls back, sends one flush (any call will do)   *)
(*              down the proxied path, and goes direct when it is answered.*)
(* B  giver     Gives only a settled reference: one whose earlier path, if *)
(*              it came to B by a handoff too, is empty. It proxies until A*)
(*              acknowledges. It may draw the ticket itself and send the   *)
(*              offer and the deposit at once; on a node the home draws it *)
(*              and the offer follows, which is one of those behaviours.   *)
(* C  home      A withdrawal that finds no gift is NotFound, also when the *)
(*              deposit is still under way: A asks again. C would else have*)
(*              to remember what any stranger asks for.                    *)
(* E  stranger  Another authenticated party. It learns each ticket when it *)
(*              is drawn, withdraws, deposits, but speaks for itself only: *)
(*              a connection proves who is at its end.                     *)
(*                                                                         *)
(* A connection delivers in order and once, until it breaks; what is under *)
(* way is then lost. Between connections there is no order. A giver's last *)
(* words may arrive after it is gone. Gifts are in C's memory: a restart   *)
(* loses them, ends all sessions, and keeps what was revoked.              *)
(*                                                                         *)
(* Not modelled: rights (`capability`), answers to calls, a receiver that  *)
(* restarts (its session and what it withdrew end), a giver that lies.     *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS MaxCalls, MaxTickets, MaxTroubles   \* bound the state space only

VARIABLES
    \* A
    calls,      \* how many calls A made; they are numbered from 1
    path,       \* "proxied", "flushing", "direct", or "none" when A lost all it had
    mine,       \* the ticket by which A withdrew what it goes direct with; 0 if none
    \* B
    gone,       \* B crashed
    settled,    \* B's reference is its own session at C; before, B called by an earlier path
    export,     \* B still proxies for A
    drawn,      \* tickets drawn; they are numbered from 1 and never drawn again
    offered,    \* tickets that A was given
    \* C
    origin,     \* "link": B redeemed a certificate; "session": B has no more than its session
    revoked,    \* B's capability was revoked (durable)
    session,    \* the number of B's session at C; 0 if none
    gift,       \* gift[t]: what waits under ticket t
    child,      \* child[t]: what A withdrew with t
    effects,    \* what took effect at C, in order
    \* connections
    ab, bc, ac, ca,
    old,        \* B's earlier path to C
    echo,       \* answers to flushes, by ticket, on their way to A
    ack,        \* A's acknowledgement to B
    \* observer
    taken,      \* every withdrawal that worked
    dropped,    \* calls that B took and did not pass on though it lived
    doubt,      \* calls that A was told are lost, though they may still be on their way from B
    troubles    \* gifts that expired or were squatted on, connections that broke, restarts of C

a == <<calls, path, mine>>
b == <<gone, settled, export, drawn, offered>>
c == <<origin, revoked, session, gift, child, effects>>
net == <<ab, bc, ac, ca, old, echo, ack>>
ghosts == <<taken, dropped, doubt, troubles>>
vars == <<a, b, c, net, ghosts>>

Tickets == 1..MaxTickets
NoGift == [giver |-> "none", receiver |-> "none", under |-> 0]
NoChild == [of |-> "none", under |-> 0, live |-> FALSE]

\* What a gift of B's hangs from. A link outlives B's session, a session's capability does not.
LINK == 0
Under == IF origin = "link" THEN LINK ELSE session

\* Each check walks to the root. Revoking B's capability is one store, at B's own slot.
LiveUnder(of, under) == of # "B" \/ (~revoked /\ (under = LINK \/ under = session))
LiveB == session # 0 /\ ~revoked
LiveChild(t) == child[t].live /\ LiveUnder(child[t].of, child[t].under)

Numbers == {effects[i].n : i \in DOMAIN effects}

Init ==
    /\ calls = 0 /\ path = "proxied" /\ mine = 0
    /\ gone = FALSE /\ settled = FALSE /\ export = TRUE /\ drawn = 0 /\ offered = {}
    /\ origin \in {"link", "session"} /\ revoked = FALSE /\ session = 0
    /\ gift = [t \in Tickets |-> NoGift] /\ child = [t \in Tickets |-> NoChild]
    /\ effects = <<>>
    /\ ab = <<>> /\ bc = <<>> /\ ac = <<>> /\ ca = <<>> /\ old = <<>>
    /\ echo = {} /\ ack = FALSE
    /\ taken = <<>> /\ dropped = {} /\ doubt = {} /\ troubles = 0

Msg(what, n) == [what |-> what, n |-> n]

----------------------------------------------------------------------------
(* A *)

Call ==
    /\ calls < MaxCalls
    /\ path \in {"proxied", "direct"}
    /\ calls' = calls + 1
    /\ IF path = "proxied"
       THEN ~gone /\ ab' = Append(ab, Msg("call", calls + 1)) /\ UNCHANGED ac
       ELSE ac' = Append(ac, Msg("call", calls + 1)) /\ UNCHANGED ab
    /\ UNCHANGED <<path, mine, b, c, bc, ca, old, echo, ack, ghosts>>

\* Presents a ticket, and again after NotFound, one request at a time.
Withdraw(t) ==
    /\ path = "proxied" /\ t \in offered /\ ac = <<>> /\ ca = <<>>
    /\ ac' = Append(ac, Msg("withdraw", t))
    /\ UNCHANGED <<a, b, c, ab, bc, ca, old, echo, ack, ghosts>>

\* With B gone there is nothing to flush: what has not arrived is in doubt, and A is told so.
Withdrawn ==
    /\ ca # <<>> /\ Head(ca).what = "granted"
    /\ ca' = Tail(ca)
    /\ mine' = Head(ca).n
    /\ IF gone
       THEN path' = "direct" /\ doubt' = (1..calls) \ Numbers /\ UNCHANGED ab
       ELSE path' = "flushing" /\ ab' = Append(ab, Msg("flush", Head(ca).n)) /\ UNCHANGED doubt
    /\ UNCHANGED <<calls, b, c, bc, ac, old, echo, ack, taken, dropped, troubles>>

NotFound ==
    /\ ca # <<>> /\ Head(ca).what = "not-found"
    /\ ca' = Tail(ca)
    /\ UNCHANGED <<a, b, c, ab, bc, ac, old, echo, ack, ghosts>>

\* The flush of this very handoff was answered: all that A sent before it has arrived.
GoDirect ==
    /\ path = "flushing" /\ mine \in echo
    /\ path' = "direct"
    /\ ack' = TRUE
    /\ UNCHANGED <<calls, mine, b, c, ab, bc, ac, ca, old, echo, ghosts>>

\* A sees that B is gone before the answer came.
LoseGiver ==
    /\ path = "flushing" /\ gone
    /\ path' = "direct"
    /\ doubt' = (1..calls) \ Numbers
    /\ UNCHANGED <<calls, mine, b, c, net, taken, dropped, troubles>>

----------------------------------------------------------------------------
(* B *)

\* B's own session replaces its earlier path once that is empty: B's own flush was answered.
Settle ==
    /\ ~gone /\ ~settled
    /\ old = <<>>
    /\ settled' = TRUE
    /\ session' = 1
    /\ UNCHANGED <<a, gone, export, drawn, offered, origin, revoked, gift, child, effects, net, ghosts>>

Forward ==
    /\ ~gone /\ ab # <<>>
    /\ settled => session # 0
    /\ ab' = Tail(ab)
    /\ IF ~export THEN dropped' = dropped \cup {Head(ab).n} /\ UNCHANGED <<bc, old>>
       ELSE /\ UNCHANGED dropped
            /\ IF settled THEN bc' = Append(bc, Head(ab)) /\ UNCHANGED old
                          ELSE old' = Append(old, Head(ab)) /\ UNCHANGED bc
    /\ UNCHANGED <<a, b, c, ac, ca, echo, ack, taken, doubt, troubles>>

\* Sends a deposit for A, of a settled reference. A ticket is sent once only: it works again if its
\* deposit is repeated after the withdrawal.
Deposit ==
    /\ ~gone /\ settled /\ session # 0 /\ export
    /\ drawn < MaxTickets
    /\ drawn' = drawn + 1
    /\ bc' = Append(bc, Msg("deposit", drawn + 1))
    /\ UNCHANGED <<a, gone, settled, export, offered, c, ab, ac, ca, old, echo, ack, ghosts>>

Offer(t) ==
    /\ ~gone /\ t \in 1..drawn /\ t \notin offered
    /\ offered' = offered \cup {t}
    /\ UNCHANGED <<a, gone, settled, export, drawn, c, net, ghosts>>

\* A does not use the proxied path any more.
Release ==
    /\ ~gone /\ export
    /\ ack
    /\ export' = FALSE
    /\ UNCHANGED <<a, gone, settled, drawn, offered, c, net, ghosts>>

\* B's session was lost though B lives: its certificate is good again, if that is what it has.
Redeem ==
    /\ ~gone /\ settled /\ session = 0 /\ origin = "link" /\ ~revoked
    /\ session' = troubles + 1
    /\ UNCHANGED <<a, b, origin, revoked, gift, child, effects, net, ghosts>>

GiverDies ==
    /\ ~gone
    /\ gone' = TRUE
    /\ ab' = <<>>
    /\ UNCHANGED <<a, settled, export, drawn, offered, c, bc, ac, ca, old, echo, ack, ghosts>>

----------------------------------------------------------------------------
(* C *)

Effect(n, via) == effects' = Append(effects, [n |-> n, via |-> via, dead |-> revoked])

\* `peer` is whom the connection proves, `giver` whom the request names. One step: a gift that is
\* given is gone, and one that is refused stays.
WithdrawAt(peer, giver, t) ==
    LET found == /\ gift[t] # NoGift
                 /\ gift[t].receiver = peer
                 /\ gift[t].giver = giver
                 /\ LiveUnder(gift[t].giver, gift[t].under)
    IN  /\ IF found
           THEN /\ gift' = [gift EXCEPT ![t] = NoGift]
                /\ taken' = Append(taken, [ticket |-> t, by |-> peer, of |-> gift[t].giver, dead |-> revoked])
           ELSE UNCHANGED <<gift, taken>>
        /\ IF peer # "A" THEN UNCHANGED <<child, ca>>
           ELSE IF found
                THEN /\ child' = [child EXCEPT ![t] =
                            [of |-> gift[t].giver, under |-> gift[t].under, live |-> TRUE]]
                     /\ ca' = Append(ca, Msg("granted", t))
                ELSE ca' = Append(ca, Msg("not-found", t)) /\ UNCHANGED child

\* From B's earlier path, under the capability of whoever gave B its own.
DeliverEarlier ==
    /\ old # <<>>
    /\ old' = Tail(old)
    /\ IF Head(old).what = "call"
       THEN Effect(Head(old).n, "earlier") /\ UNCHANGED echo
       ELSE echo' = echo \cup {Head(old).n} /\ UNCHANGED effects
    /\ UNCHANGED <<a, b, origin, revoked, session, gift, child, ab, bc, ac, ca, ack, ghosts>>

\* From B's session. A flush is answered even if its answer is a fault.
DeliverProxied ==
    /\ bc # <<>> /\ session # 0
    /\ bc' = Tail(bc)
    /\ LET m == Head(bc) IN
       CASE m.what = "call" ->
                /\ IF LiveB THEN Effect(m.n, "proxied") ELSE UNCHANGED effects
                /\ UNCHANGED <<gift, echo>>
         [] m.what = "flush" -> echo' = echo \cup {m.n} /\ UNCHANGED <<gift, effects>>
         [] m.what = "deposit" ->
                /\ IF LiveB /\ gift[m.n] = NoGift
                   THEN gift' = [gift EXCEPT ![m.n] = [giver |-> "B", receiver |-> "A", under |-> Under]]
                   ELSE UNCHANGED gift
                /\ UNCHANGED <<effects, echo>>
    /\ UNCHANGED <<a, b, origin, revoked, session, child, ab, ac, ca, old, ack, ghosts>>

\* From A's own session.
DeliverDirect ==
    /\ ac # <<>>
    /\ ac' = Tail(ac)
    /\ LET m == Head(ac) IN
       IF m.what = "call"
       THEN /\ IF LiveChild(mine) THEN Effect(m.n, "direct") ELSE UNCHANGED effects
            /\ UNCHANGED <<gift, child, ca, taken>>
       ELSE WithdrawAt("A", "B", m.n) /\ UNCHANGED effects
    /\ UNCHANGED <<a, b, origin, revoked, session, ab, bc, old, echo, ack, dropped, doubt, troubles>>

\* One store. Who may: B, whoever it has its capability from, the operator.
Revoke ==
    /\ ~revoked
    /\ revoked' = TRUE
    /\ UNCHANGED <<a, b, origin, session, gift, child, effects, net, ghosts>>

\* C sees that B is gone. Until then it still delivers what B had sent.
GiverSessionEnds ==
    /\ gone /\ session # 0
    /\ session' = 0
    /\ bc' = <<>>
    /\ UNCHANGED <<a, b, origin, revoked, gift, child, effects, ab, ac, ca, old, echo, ack, ghosts>>

----------------------------------------------------------------------------
(* Troubles *)

Trouble == troubles < MaxTroubles /\ troubles' = troubles + 1 /\ UNCHANGED <<taken, dropped, doubt>>

\* A's direct reference broke. In the middle of a handoff it still has the proxied one.
FallBack == path' = IF path = "proxied" \/ (path = "flushing" /\ ~gone) THEN "proxied" ELSE "none"

Expire(t) ==
    /\ gift[t] # NoGift
    /\ gift' = [gift EXCEPT ![t] = NoGift]
    /\ Trouble
    /\ UNCHANGED <<a, b, origin, revoked, session, child, effects, net>>

\* A's session at C ends, with what was withdrawn in it, and with answers that A waits for.
CutDirect ==
    /\ child' = [t \in Tickets |-> [child[t] EXCEPT !.live = FALSE]]
    /\ ac' = <<>> /\ ca' = <<>>
    /\ FallBack
    /\ Trouble
    /\ UNCHANGED <<calls, mine, b, origin, revoked, session, gift, effects, ab, bc, old, echo, ack>>

HomeRestarts ==
    /\ child' = [t \in Tickets |-> [child[t] EXCEPT !.live = FALSE]]
    /\ gift' = [t \in Tickets |-> NoGift]
    /\ session' = 0
    /\ ac' = <<>> /\ ca' = <<>> /\ bc' = <<>> /\ old' = <<>>
    /\ FallBack
    /\ Trouble
    /\ UNCHANGED <<calls, mine, b, origin, revoked, effects, ab, echo, ack>>

\* E, over its own connection, presents a ticket that it stole and says that it is B's.
StrangerWithdraws(t) ==
    /\ WithdrawAt("E", "B", t)
    /\ UNCHANGED <<a, b, origin, revoked, session, effects, ab, bc, ac, old, echo, ack, dropped, doubt, troubles>>

\* E deposits something of its own for A under a ticket that it stole.
StrangerDeposits(t) ==
    /\ gift[t] = NoGift
    /\ gift' = [gift EXCEPT ![t] = [giver |-> "E", receiver |-> "A", under |-> LINK]]
    /\ Trouble
    /\ UNCHANGED <<a, b, origin, revoked, session, child, effects, net>>

----------------------------------------------------------------------------
Next ==
    \/ Call \/ Withdrawn \/ NotFound \/ GoDirect \/ LoseGiver
    \/ Settle \/ Forward \/ Deposit \/ Release \/ Redeem \/ GiverDies
    \/ DeliverEarlier \/ DeliverProxied \/ DeliverDirect \/ Revoke \/ GiverSessionEnds
    \/ CutDirect \/ HomeRestarts
    \/ \E t \in 1..drawn : Withdraw(t) \/ Offer(t) \/ Expire(t) \/ StrangerWithdraws(t) \/ StrangerDeposits(t)

Fairness ==
    /\ WF_vars(Withdrawn) /\ WF_vars(NotFound) /\ WF_vars(GoDirect)
    /\ WF_vars(Settle) /\ WF_vars(Forward) /\ WF_vars(Release)
    /\ WF_vars(DeliverEarlier) /\ WF_vars(DeliverProxied) /\ WF_vars(DeliverDirect)
    /\ \A t \in Tickets : SF_vars(Withdraw(t)) /\ WF_vars(Offer(t))

Spec == Init /\ [][Next]_vars /\ Fairness

----------------------------------------------------------------------------
(* Safety *)

TypeOK ==
    /\ calls \in 0..MaxCalls /\ drawn \in 0..MaxTickets /\ troubles \in 0..MaxTroubles
    /\ path \in {"proxied", "flushing", "direct", "none"} /\ mine \in 0..MaxTickets
    /\ session \in 0..MaxTroubles + 1
    /\ offered \subseteq 1..drawn /\ echo \subseteq 1..drawn
    /\ {gone, settled, export, revoked, ack} \subseteq BOOLEAN

\* A ticket gives once, whoever presents it however often (N3) ...
N3_WithdrawnAtMostOnce ==
    \A i, j \in DOMAIN taken : taken[i].ticket = taken[j].ticket => i = j

\* ... to the party that the giver named and to no other (C4) ...
C4_OnlyTheNamedKey == \A i \in DOMAIN taken : taken[i].by = "A"

\* ... and gives what that giver gave, not what a stranger left under a stolen ticket.
C4_NothingButTheGiversGift == \A t \in Tickets : child[t].of \in {"none", "B"}

\* Nothing takes effect by B's capability or by what was given from it once it is revoked, be B
\* there or not, and no gift of it is taken.
C2_DeadAfterRevoke ==
    /\ \A i \in DOMAIN effects : effects[i].dead => effects[i].via = "earlier"
    /\ \A i \in DOMAIN taken : ~taken[i].dead

\* Calls take effect once and in the order in which A made them, on whatever path, except that a
\* call which A was told is lost with B may come late.
OrderKept ==
    \A i, j \in DOMAIN effects :
        i < j => effects[i].n < effects[j].n \/ (effects[j].n \in doubt /\ effects[i].n # effects[j].n)

\* B passes on all that A sent it.
ProxiedUntilAcknowledged == dropped = {}

\* A goes on by itself: nothing but a revocation or the end of its own session stops it, and B's
\* end does not, unless all that B had was a session.
ReceiverOutlivesGiver ==
    path = "direct" /\ origin = "link" /\ ~revoked => LiveChild(mine)

----------------------------------------------------------------------------
(* Liveness *)

Disturbed == gone \/ revoked \/ troubles > 0

\* A handoff that is offered is completed: A goes direct and B is free of it.
OfferedIsCompleted == (offered # {}) ~> (Disturbed \/ (path = "direct" /\ ~export))

\* No call is lost on the way from one path to the other.
EveryCallArrives == \A n \in 1..MaxCalls : (calls >= n) ~> (Disturbed \/ n \in Numbers)
=============================================================================
