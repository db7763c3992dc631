//! Means by hand, what a step shows, values of Blackjack against exact ones, and pinned runs.

use super::*;
use common::envs::{self, rng};
use regression::{SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["monte_carlo"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// An episode through `(state, action, reward)` that terminates.
fn episode(steps: &[(usize, usize, f64)]) -> Vec<Step> {
    let step = |(i, &(state, action, reward)): (usize, &(usize, usize, f64))| Step {
        state,
        action,
        reward,
        terminated: i + 1 == steps.len(),
        truncated: false,
    };
    steps.iter().enumerate().map(step).collect()
}

/// Exercise 5.5: of an episode that stays nine times in one state and is paid 1 each time, the
/// first visit's return is 10, and the mean of all visits' 5.5.
#[test]
fn the_first_visit_counts_or_all_do() {
    let stay = episode(&[(0, 0, 1.0); 10]);
    for (flags, wanted, visits) in [(&[][..], 10.0, 1.0), (&["--every-visit"], 5.5, 10.0)] {
        let mut mc = MonteCarlo::new(1, 1, &args(flags));
        mc.update(&stay);
        assert!((mc.q[0] - wanted).abs() < 1e-12 && mc.c[0] == visits, "{flags:?}: {}", mc.q[0]);
    }
    // First visits are of a state and an action.
    let mut mc = MonteCarlo::new(1, 2, &args(&["--gamma=0.5"]));
    mc.update(&episode(&[(0, 0, 8.0), (0, 1, 4.0), (0, 0, 16.0), (0, 1, 32.0)]));
    assert_eq!((&mc.q[..], &mc.c[..]), (&[18.0, 20.0][..], &[1.0, 1.0][..]));
    // And the mean is over episodes.
    mc.update(&episode(&[(0, 1, 0.0)]));
    assert_eq!(mc.q, [18.0, 10.0]);
}

#[test]
fn values_of_states_are_of_first_visits_or_of_all_and_not_of_exploring_starts() {
    // From state 1 to state 0 and back, and there once more: returns are 6, 5, 3 and 1.
    let there_and_back = episode(&[(1, 0, 1.0), (0, 0, 2.0), (1, 1, 2.0), (0, 1, 1.0)]);
    for (flags, values, visits) in [
        (&["--method=epsilon-soft"][..], [5.0, 6.0], [1.0, 1.0]),
        (&["--method=epsilon-soft", "--every-visit"], [3.0, 4.5], [2.0, 2.0]),
        (&["--every-visit"], [3.0, 3.0], [2.0, 1.0]),
        (&[], [5.0, 3.0], [1.0, 1.0]),
    ] {
        let mut mc = MonteCarlo::new(2, 2, &args(flags));
        mc.update(&there_and_back);
        assert_eq!((&mc.v[..], &mc.v_c[..]), (&values[..], &visits[..]), "{flags:?}");
    }
}

#[test]
fn policies_are_made_greedy_or_soft_or_left_alone() {
    let one = episode(&[(1, 1, -1.0)]);
    let after = |flags: &[&str]| {
        let mut mc = MonteCarlo::new(3, 4, &args(flags));
        mc.q[4..8].copy_from_slice(&[0.5, 2.0, 0.0, 1.0]);
        mc.update(&one); // Q(1,1) is −1 now, and action 3 the best
        let uniform = [0.25; 4];
        assert_eq!((mc.policy(0), mc.policy(2)), (&uniform[..], &uniform[..]));
        assert_eq!(mc.act_greedily(1), 3);
        mc.policy(1).to_vec()
    };
    assert_eq!(after(&[]), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(after(&["--method=off-policy"]), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(after(&["--method=epsilon-soft", "--epsilon=0.4"]), [0.1, 0.1, 0.1, 0.7]);
    assert_eq!(after(&["--improve=false"]), [0.25; 4]);
}

#[test]
fn importance_weighs_what_follows_and_stops_where_the_target_would_not_go() {
    // Two actions: the target takes 0 in states 0 and 1 and 1 in state 2; ε = 0.5 gives b = ¾ and ¼.
    let learner = |flags: &[&str]| {
        let flags = [&["--method=off-policy", "--improve=false", "--epsilon=0.5"], flags].concat();
        let mut mc = MonteCarlo::new(3, 2, &args(&flags));
        mc.policy = vec![1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        assert_eq!((mc.behaviour(0), mc.behaviour(2)), (vec![0.75, 0.25], vec![0.25, 0.75]));
        mc
    };
    let weight = 1.0 / 0.75;
    let greedy = episode(&[(0, 1, 1.0), (1, 0, 2.0), (2, 1, 4.0)]);
    let other = episode(&[(0, 1, 8.0), (1, 1, 8.0), (2, 1, 8.0)]);
    for (flags, ordinary) in [(&[][..], false), (&["--ordinary"], true)] {
        let mut mc = learner(flags);
        mc.update(&greedy);
        // W is 1 at the last step, 4/3 before it, 16/9 before that: the action itself is not weighed.
        let weights = if ordinary { [1.0; 3] } else { [weight * weight, weight, 1.0] };
        for (found, wanted) in [mc.c[1], mc.c[2], mc.c[5]].into_iter().zip(weights) {
            assert!((found - wanted).abs() < 1e-12, "{flags:?}: {:?}", mc.c);
        }
        let values = if ordinary { [weight * weight * 7.0, weight * 6.0, 4.0] } else { [7.0, 6.0, 4.0] };
        for (found, wanted) in [mc.q[1], mc.q[2], mc.q[5]].into_iter().zip(values) {
            assert!((found - wanted).abs() < 1e-12, "{flags:?}: {:?}", mc.q);
        }
        // A state's value weighs its own action, which in state 0 the target would not have taken.
        let weights = if ordinary { [1.0; 3] } else { [0.0, weight * weight, weight] };
        let values = if ordinary { [0.0, weight * weight * 6.0, weight * 4.0] } else { [0.0, 6.0, 4.0] };
        for (found, wanted) in mc.v_c.iter().chain(&mc.v).zip(weights.iter().chain(&values)) {
            assert!((found - wanted).abs() < 1e-12, "{flags:?}: {:?}, {:?}", mc.v_c, mc.v);
        }
        let values = if ordinary { [weight * weight * 7.0, weight * 6.0, 4.0] } else { [7.0, 6.0, 4.0] };
        mc.update(&other);
        // The target would have turned off in state 1: that is known of (1,1), but says nothing of (0,1),
        // for which ordinary importance sampling counts a 0.
        assert!((mc.q[3] - weight * 16.0).abs() < 1e-12 || !ordinary && mc.q[3] == 16.0);
        let wanted = if ordinary { values[0] / 2.0 } else { values[0] };
        assert!((mc.q[1] - wanted).abs() < 1e-12, "{flags:?}: {:?}", mc.q);
        assert_eq!(mc.q[5], 6.0);
    }
}

#[test]
fn off_policy_control_turns_off_by_the_policy_that_it_has_just_improved() {
    let mut mc = MonteCarlo::new(2, 2, &args(&["--method=off-policy", "--epsilon=1"]));
    mc.update(&episode(&[(0, 0, 0.0), (1, 1, -1.0)]));
    // Action 1 turned out bad in state 1, the first of equal ones is greedy: nothing of state 0.
    assert_eq!((&mc.q[..], &mc.c[..]), (&[0.0, 0.0, 0.0, -1.0][..], &[0.0, 0.0, 0.0, 1.0][..]));
    mc.update(&episode(&[(0, 0, 0.0), (1, 0, 1.0)]));
    // Greedy now: state 0 counts, twice, for b chose between two.
    assert_eq!((&mc.q[..], &mc.c[..]), (&[1.0, 0.0, 1.0, -1.0][..], &[2.0, 0.0, 1.0, 1.0][..]));
}

#[test]
fn first_actions_are_any_and_others_follow_the_policy() {
    let rng = &mut rng(1, 0);
    let mut counts = |flags: &[&str], begun: bool| {
        let mut mc = MonteCarlo::new(1, 4, &args(flags));
        mc.policy = vec![0.0, 0.6, 0.0, 0.4];
        if begun {
            mc.episode = episode(&[(0, 1, 0.0)]);
        }
        let mut counts = [0.0; 4];
        (0..12_000).for_each(|_| counts[mc.act(0, rng)] += 1.0 / 12_000.0);
        counts
    };
    let mut check = |flags: &[&str], begun: bool, wanted: [f64; 4]| {
        for (found, wanted) in counts(flags, begun).into_iter().zip(wanted) {
            assert!(
                (found - wanted).abs() <= 5.0 * (wanted * (1.0 - wanted) / 12_000.0).sqrt() + 1e-9,
                "{flags:?}"
            );
        }
    };
    check(&[], false, [0.25; 4]);
    check(&[], true, [0.0, 0.6, 0.0, 0.4]);
    check(&["--method=epsilon-soft"], false, [0.0, 0.6, 0.0, 0.4]);
    check(&["--method=off-policy", "--epsilon=0.2"], false, [0.05, 0.53, 0.05, 0.37]);
}

#[test]
fn observations_of_several_numbers_are_one_index() {
    let spec = envs::make("Blackjack-v1").unwrap().spec().clone();
    let (states, num_actions) = States::new(&spec).unwrap();
    assert_eq!((states.len(), num_actions), (32 * 11 * 2, 2));
    assert_eq!(states.index(&[13.0, 2.0, 1.0]), (13 * 11 + 2) * 2 + 1);
    let (states, _) = States::new(envs::make("FrozenLake-v1").unwrap().spec()).unwrap();
    assert_eq!((states.len(), states.index(&[7.0])), (16, 7));
}

#[test]
fn episodes_are_what_happened_and_those_cut_off_are_left_out() {
    let (mut envs, log) = scripted(1, View::State, Space::Discrete { n: 3 }, SCRIPT);
    let states = States::new(envs.spec()).unwrap().0;
    let mut rng = learner_rng(1);
    let mut mc = MonteCarlo::new(1000, 3, &args(&["--method=epsilon-soft", "--improve=false"]));
    for _ in 0..20 {
        let step = interact(&mc, &mut envs, &states, &mut rng).unwrap();
        let happened = log.of(0).pop().unwrap();
        assert_eq!(step.state as f32, happened.observation[0]);
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!((step.terminated, step.truncated), (happened.terminated, happened.truncated));
        mc.learn(step);
    }
    // Each state was visited once: its return is the sum of the rewards from there on.
    let happened = log.of(0);
    let mut counted = 0;
    for (i, step) in happened.iter().enumerate() {
        let rest: Vec<_> = happened[i..].iter().take_while(|later| later.episode == step.episode).collect();
        let terminated = rest.last().is_some_and(|last| last.terminated);
        let entry = step.observation[0] as usize * 3 + step.action[0] as usize;
        let g = if terminated { rest.iter().map(|later| f64::from(later.reward)).sum() } else { 0.0 };
        assert_eq!((mc.q[entry], mc.c[entry]), (g, f64::from(terminated)), "step {i}");
        counted += u32::from(terminated);
    }
    assert!((8..18).contains(&counted), "{counted}");
    let ends: Vec<_> = happened.iter().map(|t| (t.terminated, t.truncated)).collect();
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
}

const STICK: usize = 0;
const HIT: usize = 1;

/// Probability of each card from the infinite deck.
fn card(value: usize) -> f64 {
    if value == 10 { 4.0 / 13.0 } else { 1.0 / 13.0 }
}

/// The sum of a hand after one more card, and whether an ace counts 11.
fn draw(sum: usize, ace: bool, card: usize) -> (usize, bool) {
    match (sum + card, ace) {
        (sum, false) if card == 1 && sum + 10 <= 21 => (sum + 10, true),
        (sum, true) if sum > 21 => (sum - 10, false),
        (sum, ace) => (sum, ace),
    }
}

/// Probabilities of the dealer's last sum, 0 being bust, `[22]`.
fn dealer(sum: usize, ace: bool) -> [f64; 22] {
    let mut ends = [0.0; 22];
    if sum >= 17 {
        ends[if sum > 21 { 0 } else { sum }] = 1.0;
        return ends;
    }
    for value in 1..=10 {
        let (next, ace) = draw(sum, ace, value);
        for (end, p) in ends.iter_mut().zip(dealer(next, ace)) {
            *end += card(value) * p;
        }
    }
    ends
}

/// The number of the action for a sum, the dealer's card and whether an ace counts 11.
type Policy = Box<dyn Fn(usize, usize, bool) -> usize>;

/// Blackjack by dynamic programming: exact values of a policy, or without one of the best.
struct Exact {
    policy: Option<Policy>,
    q: Vec<[f64; 2]>, // [sum, dealer's card, ace][action] as `States` has them
}

impl Exact {
    fn index(sum: usize, shown: usize, ace: bool) -> usize {
        (sum * 11 + shown) * 2 + usize::from(ace)
    }

    fn new(policy: Option<Policy>) -> Self {
        let mut this = Self { policy, q: vec![[0.0; 2]; 32 * 11 * 2] };
        for shown in 1..=10 {
            let (sum, ace) = draw(0, false, shown);
            let ends = dealer(sum, ace);
            // A hit leads to a larger sum, or to a hard one of at least 12: those first.
            let hard = |sums: std::ops::RangeInclusive<usize>| sums.rev().map(|sum| (sum, false));
            let soft = (12..=21).rev().map(|sum| (sum, true));
            for (sum, ace) in hard(11..=21).chain(soft).chain(hard(2..=10)) {
                let less: f64 = ends[..sum.max(17)].iter().sum::<f64>();
                let more: f64 = ends[sum.max(16) + 1..].iter().sum();
                let less = if sum < 17 { ends[0] } else { less };
                let hit: f64 = (1..=10)
                    .map(|value| {
                        let (sum, ace) = draw(sum, ace, value);
                        card(value) * if sum > 21 { -1.0 } else { this.value(sum, shown, ace) }
                    })
                    .sum();
                this.q[Self::index(sum, shown, ace)] = [less - more, hit];
            }
        }
        this
    }

    fn value(&self, sum: usize, shown: usize, ace: bool) -> f64 {
        let q = self.q[Self::index(sum, shown, ace)];
        match &self.policy {
            Some(policy) => q[policy(sum, shown, ace)],
            None => q[STICK].max(q[HIT]),
        }
    }

    /// From the deal. A natural, on which all of these policies stick, wins unless the dealer has one.
    fn of_the_deal(&self) -> f64 {
        self.of_the_deal_with(|_, dealers_natural| 1.0 - dealers_natural)
    }

    /// From the deal, where a natural wins what `natural` says of what it would be worth as any 21 and of the
    /// probability that the dealer has one as well.
    fn of_the_deal_with(&self, natural: impl Fn(f64, f64) -> f64) -> f64 {
        let mut value = 0.0;
        for shown in 1..=10 {
            let dealers_natural = if shown == 1 {
                card(10)
            } else if shown == 10 {
                card(1)
            } else {
                0.0
            };
            for first in 1..=10 {
                for second in 1..=10 {
                    let (sum, ace) = draw(0, false, first);
                    let (sum, ace) = draw(sum, ace, second);
                    let sticks = self.policy.as_ref().is_none_or(|policy| policy(sum, shown, ace) == STICK);
                    let of_sum = self.value(sum, shown, ace);
                    let of = if sum == 21 && sticks { natural(of_sum, dealers_natural) } else { of_sum };
                    value += card(shown) * card(first) * card(second) * of;
                }
            }
        }
        value
    }

    /// The policy that sticks from a sum on.
    fn sticking_at(from: usize) -> Self {
        Self::new(Some(Box::new(move |sum, _, _| if sum >= from { STICK } else { HIT })))
    }
}

#[test]
fn the_exact_values_are_the_known_ones() {
    let close = |found: f64, wanted: f64, tolerance: f64| {
        assert!((found - wanted).abs() <= tolerance, "{found}, known {wanted}");
    };
    let best = Exact::new(None);
    close(best.of_the_deal(), -0.0431131, 1e-6);
    // Gymnasium's other rules: a natural is a 21 like others, or pays half as much again if it wins.
    close(best.of_the_deal_with(|value, _| value), -0.0465560, 1e-6);
    close(best.of_the_deal_with(|value, _| 1.5 * value), -0.0257292, 1e-6);
    for (from, wanted) in [(20, -0.350), (17, -0.0759), (0, -0.183)] {
        close(Exact::sticking_at(from).of_the_deal(), wanted, 6e-4);
    }
    // Example 5.4.
    close(Exact::sticking_at(20).value(13, 2, true), -0.277204, 1e-6);
    // Figure 5.2: the sum from which one sticks, by the dealer's card, an ace first.
    let sticks_from = |shown: usize, ace: bool| {
        let sticks = |sum: &usize| {
            let [stick, hit] = best.q[Exact::index(*sum, shown, ace)];
            stick >= hit
        };
        (12..=21).find(sticks).unwrap()
    };
    let hard: Vec<usize> = (1..=10).map(|shown| sticks_from(shown, false)).collect();
    assert_eq!(hard, [17, 13, 13, 12, 12, 12, 17, 17, 17, 17]);
    let soft: Vec<usize> = (1..=10).map(|shown| sticks_from(shown, true)).collect();
    assert_eq!(soft, [19, 18, 18, 18, 18, 18, 18, 18, 19, 19]);
}

/// Plays so many hands with these flags, from the policy that `--stick-from` says, and looks at it after each.
fn play(
    env_id: &str,
    flags: &[&str],
    hands: usize,
    seed: u64,
    mut look: impl FnMut(usize, &MonteCarlo),
) -> MonteCarlo {
    let mut envs = VecEnv::make(env_id, 1, seed).unwrap();
    let (states, num_actions) = States::new(envs.spec()).unwrap();
    let mut rng = learner_rng(seed);
    let mut mc = MonteCarlo::new(states.len(), num_actions, &args(flags));
    if let Some(sum) = mc.args.stick_from {
        mc.stick_from(sum, &states);
    }
    let mut played = 0;
    while played < hands {
        let step = interact(&mc, &mut envs, &states, &mut rng).unwrap();
        mc.learn(step);
        if !envs.episodes().is_empty() {
            played += 1;
            look(played, &mc);
        }
    }
    mc
}

/// What the greedy policy is worth from the deal, exactly.
fn worth(mc: MonteCarlo) -> f64 {
    let policy = move |sum: usize, shown: usize, ace: bool| mc.act_greedily(Exact::index(sum, shown, ace));
    Exact::new(Some(Box::new(policy))).of_the_deal()
}

/// Example 5.3 and figure 5.2: 500,000 hands. A policy that sticks at 17 is worth −0.0759.
#[test]
fn control_learns_blackjack_nearly_as_well_as_it_can_be_played() {
    for flags in [&[][..], &["--method=epsilon-soft"], &["--method=off-policy", "--epsilon=0.5"]] {
        for seed in 1..=3 {
            let worth = worth(play("Blackjack-v1", flags, 500_000, seed, |_, _| {}));
            assert!((-0.06..=-0.0431).contains(&worth), "{flags:?}, seed {seed}: {worth}");
        }
    }
}

#[test]
fn the_policy_that_sticks_from_a_sum_on_is_by_the_sum_alone() {
    let (states, num_actions) = States::new(envs::make("Blackjack-v1").unwrap().spec()).unwrap();
    let mut mc = MonteCarlo::new(states.len(), num_actions, &args(&[]));
    mc.stick_from(20, &states);
    for (sum, sticks) in [(4.0, false), (19.0, false), (20.0, true), (21.0, true)] {
        for (shown, ace) in [(1.0, 0.0), (10.0, 1.0)] {
            let policy = mc.policy(states.index(&[sum, shown, ace]));
            assert_eq!(policy, if sticks { [1.0, 0.0] } else { [0.0, 1.0] }, "{sum}");
        }
    }
}

/// Example 5.1 and figure 5.1: the policy that sticks on 20 and 21, after 500,000 hands; by first visits,
/// by all visits (in Blackjack the same) and by importance sampling from a policy that does anything.
#[test]
fn prediction_finds_the_values_of_a_policy() {
    let exact = Exact::sticking_at(20);
    for flags in [
        &[][..],
        &["--method=epsilon-soft", "--every-visit"],
        &["--method=off-policy", "--epsilon=1"],
        &["--method=off-policy", "--epsilon=1", "--ordinary"],
    ] {
        let all = [&["--improve=false", "--stick-from=20"], flags].concat();
        let mc = play("Blackjack-v1", &all, 500_000, 1, |_, _| {});
        // In standard errors, a return's deviation being about 0.9; actions that are never taken apart.
        let (mut of_actions, mut of_states) = (Vec::new(), Vec::new());
        for (sum, shown) in (12..=20).flat_map(|sum| (1..=10).map(move |shown| (sum, shown))) {
            for ace in [false, true] {
                let state = Exact::index(sum, shown, ace);
                for action in [STICK, HIT] {
                    let (q, visits) = (mc.q[2 * state + action], mc.c[2 * state + action]);
                    of_actions.push((q - exact.q[state][action]).powi(2) * visits / 0.8);
                }
                of_states.push((mc.v[state] - exact.value(sum, shown, ace)).powi(2) * mc.v_c[state] / 0.8);
            }
        }
        let mean = |squares: Vec<f64>| {
            let of_visited: Vec<f64> = squares.into_iter().filter(|&square| square > 0.0).collect();
            assert!(of_visited.len() >= 170, "{flags:?}: {}", of_visited.len());
            of_visited.iter().sum::<f64>() / of_visited.len() as f64
        };
        let (of_actions, of_states) = (mean(of_actions), mean(of_states));
        println!("{flags:?}: actions {of_actions}, states {of_states}");
        // 1 for means of independent returns. Importance sampling's have larger variances.
        let importance = flags.contains(&"--method=off-policy");
        let allowed = |most: f64| 0.6..if importance { most } else { 1.25 };
        assert!(allowed(4.0).contains(&of_actions), "{flags:?}: {of_actions}");
        assert!(allowed(8.0).contains(&of_states), "{flags:?}: {of_states}");
    }
}

/// Of what ordinary importance sampling is the mean, W G, in example 5.4: by dynamic programming, with other
/// code.
const VARIANCE: f64 = 10.156213;

/// Example 5.4 and figure 5.3: one state, an ace, a two and the dealer's two, whose value under the policy
/// that sticks on 20 and 21 is −0.27726; the behaviour hits or sticks alike. Mean square errors over 100
/// runs after 1, 10, 100, … hands.
#[test]
fn weighted_importance_sampling_errs_less_at_first() {
    let hands = [1, 10, 100, 1000, 10_000];
    let start = Exact::index(13, 2, true);
    let errors = |flags: &[&str]| {
        let known = ["--method=off-policy", "--improve=false", "--epsilon=1", "--stick-from=20"];
        let flags = [&known[..], flags].concat();
        let (mut errors, mut mean) = ([0.0; 5], 0.0);
        for run in 1..=100 {
            let mc = play("BlackjackState-v0", &flags, 10_000, run, |hand, mc| {
                if let Some(i) = hands.iter().position(|&number| number == hand) {
                    errors[i] += (mc.v[start] + 0.27726).powi(2) / 100.0;
                }
            });
            mean += mc.v[start] / 100.0;
        }
        (errors, mean)
    };
    let (weighted, ordinary) = (errors(&[]), errors(&["--ordinary"]));
    println!("weighted {weighted:?}, ordinary {ordinary:?}");
    // The weighted error is the smaller one from the beginning, and both come near 0.
    assert!((0..4).all(|i| weighted.0[i] < ordinary.0[i]), "{weighted:?}, {ordinary:?}");
    // Ordinary importance sampling is a mean of independent numbers: of n hands, its error is VARIANCE / n.
    // The mean of 100 runs' squares has a standard error of a seventh, where they are nearly normal.
    assert!((ordinary.0[4] * 10_000.0 / VARIANCE - 1.0).abs() < 3.0 / 50_f64.sqrt(), "{ordinary:?}");
    assert!(weighted.0[4] < 3e-3, "{weighted:?}");
    // The means of 100 runs, within three standard errors.
    for (errors, mean) in [weighted, ordinary] {
        assert!((mean + 0.27726).abs() < 3.0 * (errors[4] / 100.0).sqrt(), "{mean}, errors {errors:?}");
    }
}

#[test]
fn pinned_run_of_exploring_starts() {
    let args = ["--total-timesteps=4000", "--eval-episodes=200"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "exploring_starts", &args, train);
}

/// A lake whose time limit cuts episodes off, states seen again, and a discount.
#[test]
fn pinned_run_of_epsilon_soft() {
    let args = [
        "--env-id=FrozenLake-v1-deterministic",
        "--method=epsilon-soft",
        "--epsilon=0.4",
        "--gamma=0.9",
        "--every-visit",
        "--total-timesteps=20000",
        "--eval-episodes=5",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "epsilon_soft", &args, train);
}

#[test]
fn pinned_run_of_off_policy() {
    let args = ["--method=off-policy", "--epsilon=0.3", "--total-timesteps=4000", "--eval-episodes=200"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "off_policy", &args, train);
}

/// It ends by its number of episodes, and says what the next one's first state is worth.
#[test]
fn pinned_run_of_prediction() {
    let args = [
        "--method=off-policy",
        "--epsilon=0.6",
        "--ordinary",
        "--improve=false",
        "--stick-from=18",
        "--total-episodes=1000",
        "--log-every=20",
        "--eval-episodes=200",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "ordinary", &args, train);
}
