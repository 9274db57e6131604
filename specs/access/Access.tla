------------------------------- MODULE Access -------------------------------
(***************************************************************************)
(* How people reach resources: roles with a hierarchy and separation of    *)
(* duty, attribute policies, tokens bound to keys, and the recovery of a   *)
(* lost key.                                                               *)
(*                                                                         *)
(* Access: nothing is done to a resource without an authorisation that is  *)
(* valid at the moment at which it is done. Recovery: whoever gets a lost  *)
(* identity back has at most what it held, the old key is dead, and it     *)
(* takes two people. These are C1, C2 and C4 for people, and the policy    *)
(* decision of S1.                                                         *)
(*                                                                         *)
(* One decision point holds assignments, policy, revocations and sessions. *)
(* The resource's home asks it (Decide), and acts later (Commit): in       *)
(* between anything may change. A decision carries the version of all that *)
(* it rests on and the time at which it ends, and the home compares just   *)
(* these two when it acts. So every change must make a new version, also   *)
(* a restart. A policy is what a Cedar policy set comes to: which role may *)
(* act on a resource with which attribute; roles inherit as Cedar entities *)
(* do from their parents. Separation of duty is a check on state, beside   *)
(* the policy.                                                             *)
(*                                                                         *)
(* The adversary has a copy of every token, and the key of one person at a *)
(* time. The decision point crashes at any moment: sessions, approvals and *)
(* revocations that are not on the disk are gone, and homes keep decisions.*)
(*                                                                         *)
(* Not modelled: several decision points and the way of a version to other *)
(* nodes (see the spec revocation), guards (see capability), forged        *)
(* signatures, administrators who conspire, clocks that go back (the core  *)
(* keeps a floor), approvers who are talked into it.                       *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS
    Users,            \* people
    Roles,
    Juniors,          \* of each role: itself and all roles that it inherits
    StaticSeparated,  \* sets of roles that nobody may hold together
    DynamicSeparated, \* sets of roles that nobody may exercise at one time
    Guardian,         \* the role that approves recoveries
    Policies,         \* a sequence: each gives the attributes that a role may act on
    Worlds,           \* small organisations, each with what may happen in it
    MaxTime, Lifetime, MaxKeys

VARIABLES
    world,      \* one of Worlds; never changes
    assigned,   \* roles of each user; durable
    key_of,     \* each user's key; durable
    policy,     \* the policy in force; durable
    attr,       \* the resource's attribute
    version,    \* of everything that a decision rests on; durable
    now,
    tokens,     \* all tokens ever issued: anybody may have a copy
    revoked,    \* tokens that the decision point refuses
    on_disk,    \* those of them that it refuses after a crash, too
    told,       \* those whose revocation has returned
    sessions,   \* of each place: None, or a token, who is behind it, active roles
    pending,    \* of each place: None, or a decision that the home acts on later
    stolen,     \* keys that the thief has
    lost,       \* users who have lost their key, or had it stolen
    recovery    \* None, or what is being recovered and who has approved

vars == <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told,
          sessions, pending, stolen, lost, recovery>>

None == [none |-> TRUE]

-----------------------------------------------------------------------------
(* Roles *)

Closure(roles) == UNION {Juniors[r] : r \in roles}
MayHold(u) == Closure(assigned[u])

Separated(roles, rules) == \A rule \in rules : ~(rule \subseteq Closure(roles))

(* All that a user exercises at present, in whatever session. *)
Exercised(u) ==
    UNION {sessions[s].active : s \in {p \in world.sessions :
        sessions[p] # None /\ tokens[sessions[p].token].user = u}}

(* What the decision point looks at *)

ValidToken(t) ==
    /\ t \notin revoked
    /\ now < tokens[t].expires
    /\ tokens[t].key = key_of[tokens[t].user]

Usable(s, r) ==
    /\ sessions[s] # None
    /\ ValidToken(sessions[s].token)
    /\ r \in Closure(sessions[s].active)
    /\ r \in MayHold(tokens[sessions[s].token].user)

Permits(r) == attr \in Policies[policy][r]

(* A change of anything that a decision rests on. *)
Changes ==
    /\ version < world.max_version
    /\ version' = version + 1

-----------------------------------------------------------------------------
(* Administration: assumed honest, and durable before it shows *)

Assign(u, r) ==
    /\ r \notin assigned[u]
    /\ Separated(assigned[u] \cup {r}, StaticSeparated)
    /\ Changes
    /\ assigned' = [assigned EXCEPT ![u] = @ \cup {r}]
    /\ UNCHANGED <<world, key_of, policy, attr, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost, recovery>>

Deassign(u, r) ==
    /\ r \in assigned[u]
    /\ Changes
    /\ assigned' = [assigned EXCEPT ![u] = @ \ {r}]
    /\ UNCHANGED <<world, key_of, policy, attr, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost, recovery>>

UpdatePolicy(p) ==
    /\ p # policy
    /\ Changes
    /\ policy' = p
    /\ UNCHANGED <<world, assigned, key_of, attr, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost, recovery>>

(* The resource moves to another tenant, gets another label, and the like. *)
SetAttribute(a) ==
    /\ a # attr
    /\ Changes
    /\ attr' = a
    /\ UNCHANGED <<world, assigned, key_of, policy, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost, recovery>>

(* A token names its holder's key, and no role that its holder lacks. *)
IssueToken(u, r) ==
    /\ Len(tokens) < world.max_tokens
    /\ r \in MayHold(u)
    /\ tokens' = Append(tokens, [user |-> u, key |-> key_of[u], roles |-> {r}, expires |-> now + Lifetime])
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, revoked, on_disk, told, sessions, pending, stolen, lost, recovery>>

(* A decrease acts first ... *)
RevokeToken(t) ==
    /\ t \notin revoked
    /\ Changes
    /\ revoked' = revoked \cup {t}
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, now, tokens, on_disk, told, sessions, pending, stolen, lost, recovery>>

(* ... and returns when it is durable. *)
Persist ==
    /\ on_disk # revoked
    /\ on_disk' = revoked
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, told, sessions, pending, stolen, lost, recovery>>

RevokeReturns(t) ==
    /\ t \in on_disk \ told
    /\ told' = told \cup {t}
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, sessions, pending, stolen, lost, recovery>>

Tick ==
    /\ now < MaxTime
    /\ now' = now + 1
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, tokens, revoked, on_disk, told, sessions, pending, stolen, lost, recovery>>

-----------------------------------------------------------------------------
(* Sessions and use *)

(* Who can sign with a key: its owner as long as it is not lost, and the thief. *)
Signs(who, t) ==
    IF who = "owner"
    THEN tokens[t].user \notin lost
    ELSE tokens[t].key \in stolen

(* Somebody presents a token, signs with its key, and names a first role. *)
OpenSession(s, t, who, r) ==
    LET u == tokens[t].user
    IN  /\ sessions[s] = None
        /\ ValidToken(t)
        /\ Signs(who, t)
        /\ r \in Closure(tokens[t].roles) \cap MayHold(u)
        /\ Separated(Exercised(u) \cup {r}, DynamicSeparated)
        /\ sessions' = [sessions EXCEPT ![s] = [token |-> t, who |-> who, active |-> {r}]]
        /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, pending, stolen, lost, recovery>>

Activate(s, r) ==
    /\ sessions[s] # None
    /\ LET t == sessions[s].token
           u == tokens[t].user
       IN  /\ ValidToken(t)
           /\ r \in (Closure(tokens[t].roles) \cap MayHold(u)) \ sessions[s].active
           /\ Separated(Exercised(u) \cup {r}, DynamicSeparated)
    /\ sessions' = [sessions EXCEPT ![s].active = @ \cup {r}]
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, pending, stolen, lost, recovery>>

CloseSession(s) ==
    /\ sessions[s] # None
    /\ sessions' = [sessions EXCEPT ![s] = None]
    /\ pending' = [pending EXCEPT ![s] = None]
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, stolen, lost, recovery>>

(* Dispatch: the decision point decides for a role that the session exercises. *)
Decide(s, r) ==
    /\ Usable(s, r)
    /\ Permits(r)
    /\ pending' = [pending EXCEPT ![s] =
            [token |-> sessions[s].token, role |-> r, version |-> version]]
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, stolen, lost, recovery>>

(* The home acts: it compares, and looks nothing up. *)
MayCommit(s) ==
    /\ pending[s] # None
    /\ pending[s].version = version
    /\ now < tokens[pending[s].token].expires

Commit(s) ==
    /\ MayCommit(s)
    /\ pending' = [pending EXCEPT ![s] = None]
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, stolen, lost, recovery>>

-----------------------------------------------------------------------------
(* Loss, theft and recovery *)

LoseKey(u) ==
    /\ u \notin lost
    /\ lost' = lost \cup {u}
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, pending, stolen, recovery>>

(* The thief has the present key of one person at a time. *)
StealKey(u) ==
    /\ \A other \in Users : key_of[other] \notin stolen
    /\ stolen' = stolen \cup {key_of[u]}
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, pending, lost, recovery>>

HeldTokens(u) == {t \in 1..Len(tokens) : tokens[t].user = u /\ ValidToken(t)}

(* Anybody may claim that a key is lost. What its holder has at this moment is
   written down: what a thief lets be issued to it later is not recovered. *)
AskRecovery(u) ==
    /\ recovery = None
    /\ recovery' = [user |-> u, held |-> HeldTokens(u), approvals |-> {}]
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost>>

(* A guardian opens a session, approves, and closes it. An honest one makes
   sure that the person who asks is the one who lost the key. *)
Approve(t, who) ==
    LET approver == tokens[t].user
    IN  /\ recovery # None
        /\ ValidToken(t)
        /\ Signs(who, t)
        /\ Guardian \in Closure(tokens[t].roles) \cap MayHold(approver)
        /\ Separated(Exercised(approver) \cup {Guardian}, DynamicSeparated)
        /\ approver # recovery.user
        /\ who = "owner" => recovery.user \in lost
        /\ recovery' = [recovery EXCEPT !.approvals = @ \cup {[token |-> t, who |-> who]}]
        /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost>>

(* Approvals count if they could be given now, and by people, not by tokens. *)
Counted ==
    {a \in recovery.approvals :
        ValidToken(a.token) /\ Guardian \in MayHold(tokens[a.token].user)}

MayRecover ==
    /\ recovery # None
    /\ Cardinality({tokens[a.token].user : a \in Counted}) >= 2

(* A key that nobody ever had. *)
NewKey == 1 + CHOOSE k \in 1..MaxKeys :
    (\E u \in Users : key_of[u] = k) /\ \A u \in Users : key_of[u] <= k
CanMakeKey == \A u \in Users : key_of[u] < MaxKeys

(* One of the tokens that were held, and still are, is written anew for the new
   key, with the same roles and the same end (None: nothing was held). The old
   key is no longer anybody's, so all its tokens are dead. *)
Recover(t) ==
    /\ MayRecover
    /\ CanMakeKey
    /\ Changes
    /\ LET u == recovery.user
           still == recovery.held \cap HeldTokens(u)
       IN  /\ \/ t = 0 /\ still = {} /\ tokens' = tokens
              \/ /\ t \in still
                 /\ Len(tokens) < world.max_tokens
                 /\ tokens' = Append(tokens, [tokens[t] EXCEPT !.key = NewKey])
           /\ key_of' = [key_of EXCEPT ![u] = NewKey]
           /\ lost' = lost \ {u}
           /\ LET ends(s) == sessions[s] # None /\ tokens[sessions[s].token].user = u
              IN  /\ sessions' = [s \in world.sessions |-> IF ends(s) THEN None ELSE sessions[s]]
                  /\ pending' = [s \in world.sessions |-> IF ends(s) THEN None ELSE pending[s]]
    /\ recovery' = None
    /\ UNCHANGED <<world, assigned, policy, attr, now, revoked, on_disk, told, stolen>>

GiveUpRecovery ==
    /\ recovery # None
    /\ recovery' = None
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, version, now, tokens, revoked, on_disk, told, sessions, pending, stolen, lost>>

(* The decision point crashes and starts again. Homes go on with what they
   have. *)
Restart ==
    /\ Changes
    /\ sessions' = [s \in world.sessions |-> None]
    /\ recovery' = None
    /\ revoked' = on_disk
    /\ UNCHANGED <<world, assigned, key_of, policy, attr, now, tokens, on_disk, told, pending, stolen, lost>>

-----------------------------------------------------------------------------
Init ==
    /\ world \in Worlds
    /\ assigned = world.assigned
    /\ key_of = world.keys
    /\ policy = 1
    /\ attr = "production"
    /\ version = 1
    /\ now = 0
    /\ tokens = world.tokens
    /\ revoked = {}
    /\ on_disk = {}
    /\ told = {}
    /\ sessions = [s \in world.sessions |-> None]
    /\ pending = [s \in world.sessions |-> None]
    /\ stolen = {}
    /\ lost = {}
    /\ recovery = None

Next ==
    \/ \E u \in world.changing, r \in Roles : Assign(u, r) \/ Deassign(u, r)
    \/ \E u \in world.changing, r \in Roles : IssueToken(u, r)
    \/ \E p \in world.policies : UpdatePolicy(p)
    \/ \E a \in world.attrs : SetAttribute(a)
    \/ \E t \in 1..Len(tokens) : RevokeToken(t) \/ RevokeReturns(t)
    \/ Persist \/ Tick \/ Restart
    \/ \E s \in world.sessions, t \in 1..Len(tokens), who \in {"owner", "thief"}, r \in Roles :
           OpenSession(s, t, who, r)
    \/ \E s \in world.sessions, r \in Roles : Activate(s, r) \/ Decide(s, r)
    \/ \E s \in world.sessions : CloseSession(s) \/ Commit(s)
    \/ \E t \in 1..Len(tokens), who \in {"owner", "thief"} : Approve(t, who)
    \/ \E u \in world.forgetful : LoseKey(u) \/ AskRecovery(u)
    \/ \E u \in world.stealable : StealKey(u)
    \/ \E t \in 0..Len(tokens) : Recover(t)
    \/ GiveUpRecovery

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold *)

TypeOK ==
    /\ assigned \in [Users -> SUBSET Roles]
    /\ key_of \in [Users -> 1..MaxKeys]
    /\ policy \in 1..Len(Policies) /\ attr \in {"lab", "production"}
    /\ version \in 1..world.max_version /\ now \in 0..MaxTime
    /\ Len(tokens) <= world.max_tokens
    /\ on_disk \subseteq 1..Len(tokens) /\ revoked \subseteq 1..Len(tokens)
    /\ \A s \in world.sessions : sessions[s] # None => sessions[s].active \subseteq Roles
    /\ stolen \subseteq 1..MaxKeys /\ lost \subseteq Users

(* Whatever a home may do at this moment rests on an authorisation that is
   valid at this moment: a session, a token and key in force, a role that the
   person has, a policy that permits it for the attribute as it is. *)
Access_ValidAtUse ==
    \A s \in world.sessions : MayCommit(s) =>
        /\ sessions[s] # None
        /\ sessions[s].token = pending[s].token
        /\ Usable(s, pending[s].role)
        /\ Permits(pending[s].role)

(* A copy of a token is of no use to whoever lacks its key (C4). *)
Access_TokenNeedsItsKey ==
    \A s \in world.sessions :
        sessions[s] # None /\ sessions[s].who = "thief" => tokens[sessions[s].token].key \in stolen

(* Nobody exercises a role that the token does not name (C1). *)
Access_WithinToken ==
    \A s \in world.sessions :
        sessions[s] # None => sessions[s].active \subseteq Closure(tokens[sessions[s].token].roles)

Access_StaticSeparation == \A u \in Users : Separated(assigned[u], StaticSeparated)

(* However many sessions and tokens a person has. *)
Access_DynamicSeparation == \A u \in Users : Separated(Exercised(u), DynamicSeparated)

(* A revocation that has returned holds after every crash (C2). *)
Access_RevokedStaysRevoked == told \subseteq revoked

(* One stolen key recovers nobody: somebody honest was among those who
   approved, and knows whom the new key went to. *)
Recovery_TakesTwoPeople ==
    MayRecover => \E a \in Counted : a.who = "owner"

(* What a user's present key can do, now and later: roles and times. *)
PowerOf(u, ids) ==
    {p \in MayHold(u) \X (now..MaxTime + Lifetime) :
        \E t \in ids : p[1] \in Closure(tokens[t].roles) /\ p[2] < tokens[t].expires}
Power(u) == PowerOf(u, HeldTokens(u))

(* A recovery gives nobody more than the person held at that moment, neither
   when it is done nor when it was asked for, and no other person anything. *)
Recovery_NeverMore ==
    [][key_of' # key_of =>
        \A u \in Users :
            /\ Power(u)' \subseteq Power(u)
            /\ key_of'[u] # key_of[u] => Power(u)' \subseteq PowerOf(u, recovery.held)]_vars

(* After it, the old key opens nothing and keeps nothing open. *)
Recovery_OldKeyIsDead ==
    \A s \in world.sessions :
        sessions[s] # None =>
            tokens[sessions[s].token].key = key_of[tokens[sessions[s].token].user]
=============================================================================
