--------------------------------- MODULE MC ---------------------------------
(* A small organisation for Access, and states that must be reachable. *)
EXTENDS Access

MCRoles == {"admin", "operator", "auditor", "guardian"}
MCJuniors ==
    [r \in MCRoles |-> IF r = "admin" THEN {"admin", "operator"} ELSE {r}]
(* Who operates does not audit; who approves does not operate meanwhile. *)
MCStaticSeparated == {{"operator", "auditor"}}
MCDynamicSeparated == {{"operator", "guardian"}}

(* The second policy takes production away from operators. *)
MCPolicies == <<
    [r \in MCRoles |-> IF r = "operator" THEN {"lab", "production"}
                       ELSE IF r = "auditor" THEN {"production"} ELSE {}],
    [r \in MCRoles |-> IF r = "operator" THEN {"lab"} ELSE {}]
>>

Assigned == [u \in Users |->
    IF u = "alice" THEN {"admin"} ELSE IF u = "bob" THEN {"operator", "guardian"} ELSE {"guardian"}]
Keys == [u \in Users |-> IF u = "alice" THEN 1 ELSE IF u = "bob" THEN 2 ELSE 3]
Token(u, roles, expires) == [user |-> u, key |-> Keys[u], roles |-> roles, expires |-> expires]

(* Each world looks closely at one matter; all of them are checked in one run. *)
World == [assigned |-> Assigned, keys |-> Keys, tokens |-> <<>>, max_tokens |-> 0, sessions |-> {},
          changing |-> {}, policies |-> {}, attrs |-> {}, forgetful |-> {}, stealable |-> {},
          max_version |-> 1]

(* Bob at work in two sessions, while policy and attribute change. *)
Work(changes) == [World EXCEPT
    !.tokens = <<Token("bob", {"operator", "guardian"}, 1)>>, !.max_tokens = 1,
    !.sessions = {1, 2}, !.policies = {1, 2}, !.attrs = {"lab", "production"},
    !.max_version = 1 + changes]

(* Alice's roles and tokens change, and a thief may have her key. *)
Staff(changes) == [World EXCEPT
    !.tokens = <<Token("alice", {"admin"}, 1)>>, !.max_tokens = 2,
    !.sessions = {1}, !.changing = {"alice"}, !.stealable = {"alice"}, !.policies = {1, 2},
    !.max_version = 1 + changes]

(* Alice's key is lost, and bob and carol give her a new one; or a thief who
   has the key of one person tries. *)
Loss(changes, thefts, places, staff) == [World EXCEPT
    !.tokens = <<Token("alice", {"admin"}, 1), Token("bob", {"guardian"}, 2),
                 Token("bob", {"operator", "guardian"}, 1), Token("carol", {"guardian"}, 2)>>,
    !.max_tokens = 5, !.changing = staff, !.forgetful = {"alice"}, !.stealable = thefts,
    !.sessions = places, !.max_version = 1 + changes]

QuickWorlds == {Work(3), Staff(2), Loss(2, {"bob"}, {}, {}), Loss(1, {"bob"}, {}, {"alice", "bob"}),
                Loss(1, {}, {1}, {})}
FullWorlds == {Work(4), Staff(3), Loss(2, {"bob"}, {}, {"alice", "bob"}), Loss(2, {"alice"}, {1}, {})}

-----------------------------------------------------------------------------
(* A decision that a home still holds, and that a change has overtaken. *)
Witness_StaleDecision ==
    \E s \in world.sessions : pending[s] # None /\ ~MayCommit(s) /\ pending[s].version < version

(* A decision that outlived the decision point's crash, beside a new session. *)
Witness_DecisionOutlivesCrash ==
    \E s \in world.sessions :
        pending[s] # None /\ sessions[s] # None /\ sessions[s].token # pending[s].token

(* A thief at work with a stolen key, until somebody notices. *)
Witness_ThiefAtWork ==
    \E s \in world.sessions : sessions[s] # None /\ sessions[s].who = "thief" /\ MayCommit(s)

(* A lost identity was recovered, with a token that was held. *)
Witness_Recovered == key_of["alice"] = 4 /\ HeldTokens("alice") # {}

(* A thief has approved, and one honest guardian, too. *)
Witness_ThiefApproves ==
    recovery # None /\ \E a, b \in recovery.approvals : a.who = "thief" /\ b.who = "owner"
=============================================================================
