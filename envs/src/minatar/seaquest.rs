//! Seaquest: a submarine shoots fish and enemy submarines, picks up divers, and must surface for
//! air with a diver on board.

use super::{Color, Draws, Fields, Frame, Game, Move, Result, SIDE, Step, palette};
use std::mem::take;

const DEEPEST: i32 = 8; // row; row 0 is the surface, row 9 shows the gauges
const GAUGES: i32 = SIDE - 1; // row
const MAX_OXYGEN: i32 = 200; // steps under water
const OXYGEN_UNIT: i32 = 20; // steps for one cell of the gauge and one point of reward
const CREW: i32 = 6; // divers that the submarine holds
const FEWEST_DIVERS: i32 = -1_000_000_000; // each surfacing while negative lowers the number
const ENEMY_SPAWN_INTERVAL: i32 = 20; // steps
const DIVER_SPAWN_INTERVAL: i32 = 30; // steps
const MOVE_INTERVAL: i32 = 5; // steps, of enemies without ramping and of divers
const SHORTEST_MOVE_INTERVAL: i32 = 2; // steps
const GUN_INTERVAL: i32 = 5; // steps between two shots of the player
const SUB_GUN_INTERVAL: i32 = 10; // steps between two shots of an enemy submarine, less one
const SUB_PROBABILITY: f64 = 1.0 / 3.0; // that an enemy is a submarine

/// A shot of either side.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Shot {
    x: i32,
    y: i32,
    dx: i32, // −1 to the left, +1 to the right
}

impl Shot {
    fn is_at(&self, x: i32, y: i32) -> bool {
        (self.x, self.y) == (x, y)
    }
}

/// A fish, an enemy submarine or a diver.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Swimmer {
    x: i32,
    y: i32,
    dx: i32, // −1 to the left, +1 to the right
    move_countdown: i32,
    gun_countdown: i32, // of submarines; others never shoot
}

impl Swimmer {
    fn is_at(&self, x: i32, y: i32) -> bool {
        (self.x, self.y) == (x, y)
    }

    fn is_on_board(&self) -> bool {
        (0..SIDE).contains(&self.x)
    }
}

/// The state, as numbers: the player's column, row and heading; oxygen, divers on board, the
/// player's gun countdown, whether the player has surfaced; the enemy spawn interval and
/// countdown, the diver spawn countdown, the enemy move interval, the ramp level; then the
/// player's shots, the enemy's shots, fish, submarines and divers, oldest first, each list after
/// its length.
#[derive(Debug, Clone)]
pub struct Seaquest {
    x: i32, // of the front
    y: i32,
    dx: i32, // −1 to the left, +1 to the right
    oxygen: i32,
    on_board: i32,
    gun_countdown: i32,
    at_surface: bool,
    spawn_interval: i32,
    spawn_countdown: i32,
    diver_countdown: i32,
    move_interval: i32,
    ramp_level: i32,
    // Oldest first.
    player_shots: Vec<Shot>,
    enemy_shots: Vec<Shot>,
    fish: Vec<Swimmer>,
    subs: Vec<Swimmer>,
    divers: Vec<Swimmer>,
}

impl Seaquest {
    fn spawn_enemy(&mut self, draws: &mut impl Draws) {
        let (x, dx) = side(draws);
        let sub = draws.uniform() < SUB_PROBABILITY;
        let y = draws.between(1, DEEPEST + 1);
        // Enemies of one row all swim the same way.
        if self.fish.iter().chain(&self.subs).all(|other| other.y != y || other.dx == dx) {
            let enemy = Swimmer { x, y, dx, move_countdown: self.move_interval, gun_countdown: 0 };
            if sub {
                self.subs.push(Swimmer { gun_countdown: SUB_GUN_INTERVAL, ..enemy });
            } else {
                self.fish.push(enemy);
            }
        }
        self.spawn_countdown = self.spawn_interval;
    }

    fn spawn_diver(&mut self, draws: &mut impl Draws) {
        let (x, dx) = side(draws);
        let y = draws.between(1, DEEPEST + 1);
        self.divers.push(Swimmer { x, y, dx, move_countdown: MOVE_INTERVAL, gun_countdown: 0 });
        self.diver_countdown = DIVER_SPAWN_INTERVAL;
    }

    fn move_player(&mut self, action: Move) {
        match action {
            Move::Fire if self.gun_countdown == 0 => {
                self.player_shots.push(Shot { x: self.x, y: self.y, dx: self.dx });
                self.gun_countdown = GUN_INTERVAL;
            }
            Move::Left => (self.x, self.dx) = ((self.x - 1).max(0), -1),
            Move::Right => (self.x, self.dx) = ((self.x + 1).min(SIDE - 1), 1),
            Move::Up => self.y = (self.y - 1).max(0),
            Move::Down => self.y = (self.y + 1).min(DEEPEST),
            Move::Fire | Move::Stay => {}
        }
    }

    fn move_player_shots(&mut self, step: &mut Step) {
        for i in (0..self.player_shots.len()).rev() {
            let shot = &mut self.player_shots[i];
            shot.x += shot.dx;
            let (x, y) = (shot.x, shot.y);
            let gone = if (0..SIDE).contains(&x) {
                // One shot hits one enemy, a fish rather than a submarine, the oldest of several.
                let hit = remove_oldest(&mut self.fish, x, y) || remove_oldest(&mut self.subs, x, y);
                step.reward += f64::from(u8::from(hit));
                hit
            } else {
                true
            };
            if gone {
                self.player_shots.remove(i);
            }
        }
    }

    fn move_divers(&mut self) {
        for i in (0..self.divers.len()).rev() {
            let diver = &mut self.divers[i];
            let seats = self.on_board < CREW;
            let mut gone = false;
            if seats && diver.is_at(self.x, self.y) {
                self.on_board += 1;
                gone = true;
            } else if diver.move_countdown > 0 {
                diver.move_countdown -= 1;
            } else {
                diver.move_countdown = MOVE_INTERVAL;
                diver.x += diver.dx;
                if seats && diver.is_at(self.x, self.y) {
                    self.on_board += 1;
                    gone = true;
                }
                gone |= !diver.is_on_board();
            }
            if gone {
                self.divers.remove(i);
            }
        }
    }

    /// Moves one enemy and says whether it is gone, off the board or into a shot of the player.
    fn move_enemy(&mut self, enemy: &mut Swimmer, step: &mut Step) -> bool {
        if enemy.is_at(self.x, self.y) {
            step.terminated = true;
        }
        if enemy.move_countdown > 0 {
            enemy.move_countdown -= 1;
            return false;
        }
        enemy.move_countdown = self.move_interval;
        enemy.x += enemy.dx;
        if !enemy.is_on_board() {
            return true;
        }
        if enemy.is_at(self.x, self.y) {
            step.terminated = true;
            return false;
        }
        let shot = self.player_shots.iter().position(|shot| shot.is_at(enemy.x, enemy.y));
        if let Some(oldest) = shot {
            self.player_shots.remove(oldest);
            step.reward += 1.0;
        }
        shot.is_some()
    }

    fn move_subs(&mut self, step: &mut Step) {
        for i in (0..self.subs.len()).rev() {
            let mut sub = self.subs[i];
            let gone = self.move_enemy(&mut sub, step);
            // Even a submarine that is gone fires its shot.
            if sub.gun_countdown > 0 {
                sub.gun_countdown -= 1;
            } else {
                sub.gun_countdown = SUB_GUN_INTERVAL;
                self.enemy_shots.push(Shot { x: sub.x, y: sub.y, dx: sub.dx });
            }
            self.subs[i] = sub;
            if gone {
                self.subs.remove(i);
            }
        }
    }

    fn move_enemy_shots(&mut self, step: &mut Step) {
        let (x, y) = (self.x, self.y);
        self.enemy_shots.retain_mut(|shot| {
            step.terminated |= shot.is_at(x, y);
            shot.x += shot.dx;
            step.terminated |= shot.is_at(x, y);
            (0..SIDE).contains(&shot.x)
        });
    }

    fn move_fish(&mut self, step: &mut Step) {
        for i in (0..self.fish.len()).rev() {
            let mut fish = self.fish[i];
            let gone = self.move_enemy(&mut fish, step);
            self.fish[i] = fish;
            if gone {
                self.fish.remove(i);
            }
        }
    }

    fn breathe(&mut self, ramping: bool, step: &mut Step) {
        if self.oxygen <= 0 {
            step.terminated = true;
        }
        if self.y > 0 {
            self.oxygen -= 1;
            self.at_surface = false;
        } else if !self.at_surface {
            if self.on_board == 0 {
                step.terminated = true;
            } else {
                self.surface(ramping, step);
            }
        }
    }

    fn surface(&mut self, ramping: bool, step: &mut Step) {
        self.at_surface = true;
        if self.on_board == CREW {
            step.reward += f64::from(self.oxygen.div_euclid(OXYGEN_UNIT));
            self.on_board = 0;
        }
        self.oxygen = MAX_OXYGEN;
        // One diver leaves, after a full crew left too: then the number is −1, and the submarine
        // may surface freely until it has picked up another diver.
        self.on_board = (self.on_board - 1).max(FEWEST_DIVERS);
        if ramping && (self.spawn_interval > 1 || self.move_interval > SHORTEST_MOVE_INTERVAL) {
            if self.ramp_level % 2 == 1 && self.move_interval > SHORTEST_MOVE_INTERVAL {
                self.move_interval -= 1;
            }
            if self.spawn_interval > 1 {
                self.spawn_interval -= 1;
            }
            self.ramp_level += 1;
        }
    }
}

/// Where something enters: a column at either side and the heading away from it.
fn side(draws: &mut impl Draws) -> (i32, i32) {
    if draws.uniform() < 0.5 { (0, 1) } else { (SIDE - 1, -1) }
}

/// Removes the oldest of `swimmers` in a cell, if there is one.
fn remove_oldest(swimmers: &mut Vec<Swimmer>, x: i32, y: i32) -> bool {
    let oldest = swimmers.iter().position(|swimmer| swimmer.is_at(x, y));
    oldest.map(|i| swimmers.remove(i)).is_some()
}

/// An empty list in the memory of `list`.
fn emptied<T>(list: &mut Vec<T>) -> Vec<T> {
    list.clear();
    take(list)
}

impl Game for Seaquest {
    const NAME: &'static str = "Seaquest";
    const MINIMAL_ACTIONS: &'static [Move] = &Move::ALL;
    const COLORS: &'static [Color] = &[
        palette::BLUE,       // front of the player's submarine
        palette::SKY,        // its back
        palette::ORANGE,     // player's shot
        palette::GREY,       // trail of fish, submarines and divers
        palette::VERMILLION, // enemy's shot
        palette::PURPLE,     // fish
        palette::BLACK,      // enemy submarine
        palette::SKY,        // oxygen
        palette::YELLOW,     // divers on board
        palette::GREEN,      // diver in the water
    ];

    fn new() -> Self {
        Self {
            x: 5,
            y: 0,
            dx: -1,
            oxygen: MAX_OXYGEN,
            on_board: 0,
            gun_countdown: 0,
            at_surface: true,
            spawn_interval: ENEMY_SPAWN_INTERVAL,
            spawn_countdown: ENEMY_SPAWN_INTERVAL,
            diver_countdown: DIVER_SPAWN_INTERVAL,
            move_interval: MOVE_INTERVAL,
            ramp_level: 0,
            player_shots: Vec::new(),
            enemy_shots: Vec::new(),
            fish: Vec::new(),
            subs: Vec::new(),
            divers: Vec::new(),
        }
    }

    fn reset(&mut self, _draws: &mut impl Draws) {
        *self = Self {
            player_shots: emptied(&mut self.player_shots),
            enemy_shots: emptied(&mut self.enemy_shots),
            fish: emptied(&mut self.fish),
            subs: emptied(&mut self.subs),
            divers: emptied(&mut self.divers),
            ..Self::new()
        };
    }

    fn step(&mut self, action: Move, ramping: bool, draws: &mut impl Draws) -> Step {
        let mut step = Step::default();
        if self.spawn_countdown == 0 {
            self.spawn_enemy(draws);
        }
        if self.diver_countdown == 0 {
            self.spawn_diver(draws);
        }
        self.move_player(action);
        self.move_player_shots(&mut step);
        self.move_divers();
        self.move_subs(&mut step);
        self.move_enemy_shots(&mut step);
        self.move_fish(&mut step);
        for countdown in [&mut self.spawn_countdown, &mut self.diver_countdown, &mut self.gun_countdown] {
            *countdown = (*countdown - 1).max(0);
        }
        self.breathe(ramping, &mut step);
        step
    }

    fn paint(&self, frame: &mut Frame<'_>) {
        frame.set(0, self.x, self.y);
        frame.set(1, self.x - self.dx, self.y);
        for (channel, shots) in [(2, &self.player_shots), (4, &self.enemy_shots)] {
            for shot in shots {
                frame.set(channel, shot.x, shot.y);
            }
        }
        for (channel, swimmers) in [(5, &self.fish), (6, &self.subs), (9, &self.divers)] {
            for swimmer in swimmers {
                frame.set(channel, swimmer.x, swimmer.y);
                frame.set_if_on_board(3, swimmer.x - swimmer.dx, swimmer.y);
            }
        }
        for x in 0..self.oxygen.max(0) / OXYGEN_UNIT {
            frame.set(7, x, GAUGES);
        }
        for x in GAUGES - self.on_board.max(0)..GAUGES {
            frame.set(8, x, GAUGES);
        }
    }

    fn fields(&mut self, _terminated: bool, fields: &mut Fields<'_>) -> Result<()> {
        fields.integer("player column", &mut self.x, 0..=SIDE - 1)?;
        fields.integer("player row", &mut self.y, 0..=DEEPEST)?;
        fields.direction("player heading", &mut self.dx)?;
        fields.ensure((0..SIDE).contains(&(self.x - self.dx)), "a player whose back is off the board")?;
        fields.integer("oxygen", &mut self.oxygen, -1..=MAX_OXYGEN)?;
        fields.integer("divers on board", &mut self.on_board, FEWEST_DIVERS..=CREW)?;
        fields.integer("player's gun countdown", &mut self.gun_countdown, 0..=GUN_INTERVAL)?;
        fields.flag("at surface", &mut self.at_surface)?;
        fields.integer("enemy spawn interval", &mut self.spawn_interval, 1..=ENEMY_SPAWN_INTERVAL)?;
        fields.integer("enemy spawn countdown", &mut self.spawn_countdown, 0..=ENEMY_SPAWN_INTERVAL)?;
        fields.integer("diver spawn countdown", &mut self.diver_countdown, 0..=DIVER_SPAWN_INTERVAL)?;
        let intervals = SHORTEST_MOVE_INTERVAL..=MOVE_INTERVAL;
        fields.integer("enemy move interval", &mut self.move_interval, intervals)?;
        fields.integer("ramp level", &mut self.ramp_level, 0..=ENEMY_SPAWN_INTERVAL - 1)?;

        let shot = |shot: &mut Shot, fields: &mut Fields<'_>| {
            fields.integer("shot column", &mut shot.x, 0..=SIDE - 1)?;
            fields.integer("shot row", &mut shot.y, 0..=DEEPEST)?;
            fields.direction("shot heading", &mut shot.dx)
        };
        let swimmer = |swimmer: &mut Swimmer, fields: &mut Fields<'_>| {
            fields.integer("swimmer column", &mut swimmer.x, 0..=SIDE - 1)?;
            fields.integer("swimmer row", &mut swimmer.y, 1..=DEEPEST)?;
            fields.direction("swimmer heading", &mut swimmer.dx)?;
            fields.integer("swimmer move countdown", &mut swimmer.move_countdown, 0..=MOVE_INTERVAL)?;
            fields.integer("swimmer gun countdown", &mut swimmer.gun_countdown, 0..=SUB_GUN_INTERVAL)
        };
        fields.list("player shots", &mut self.player_shots, shot)?;
        fields.list("enemy shots", &mut self.enemy_shots, shot)?;
        fields.list("fish", &mut self.fish, swimmer)?;
        fields.list("submarines", &mut self.subs, swimmer)?;
        fields.list("divers", &mut self.divers, swimmer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Script, channel, play, step};
    use super::*;

    /// Something at (x, y) that swims right and will not move soon.
    fn at(x: i32, y: i32) -> Swimmer {
        Swimmer { x, y, dx: 1, move_countdown: 5, gun_countdown: 5 }
    }

    /// The player at (5, 4) under water, facing left.
    fn under_water() -> Seaquest {
        Seaquest { y: 4, at_surface: false, ..Seaquest::new() }
    }

    #[test]
    fn oxygen_lasts_200_steps_under_water() {
        let mut game = Seaquest::new();
        for _ in 0..200 {
            (game.spawn_countdown, game.diver_countdown) = (5, 5); // nothing enters
            assert_eq!(play(&mut game, Move::Down, &[]), step(0.0, false));
        }
        assert_eq!(game.oxygen, 0);
        (game.spawn_countdown, game.diver_countdown) = (5, 5);
        // Surfacing comes too late, but its rules still apply.
        let mut surfacing = Seaquest { y: 1, on_board: 6, ..game.clone() };
        assert_eq!(play(&mut surfacing, Move::Up, &[]), step(0.0, true));
        assert_eq!((surfacing.oxygen, surfacing.on_board), (200, -1));
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, true));
        assert_eq!(game.oxygen, -1);
        assert_eq!(channel(&game, 7), []);
    }

    #[test]
    fn surfacing_needs_a_number_of_divers_that_is_not_zero() {
        let below = Seaquest { y: 1, at_surface: false, oxygen: 119, ..Seaquest::new() };
        for (on_board, expected, after, oxygen) in [
            (0, step(0.0, true), 0, 119),
            (1, step(0.0, false), 0, 200),
            (5, step(0.0, false), 4, 200),
            (6, step(5.0, false), -1, 200),
            (-1, step(0.0, false), -2, 200),
            (-2, step(0.0, false), -3, 200),
        ] {
            let mut game = Seaquest { on_board, ..below.clone() };
            assert_eq!(play(&mut game, Move::Up, &[]), expected, "{on_board} on board");
            assert_eq!((game.on_board, game.oxygen), (after, oxygen));
            assert_eq!(game.at_surface, !expected.terminated);
        }
        // Staying at the surface costs and changes nothing.
        let mut game = Seaquest { oxygen: 57, ..Seaquest::new() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, false));
        assert_eq!((game.oxygen, game.on_board, game.ramp_level), (57, 0, 0));
        // A diver who comes on board at −1 makes it 0, which is deadly.
        let mut game = Seaquest { on_board: -1, divers: vec![at(5, 1)], ..below };
        play(&mut game, Move::Stay, &[]);
        assert_eq!(game.on_board, 0);
        assert_eq!(play(&mut game, Move::Up, &[]), step(0.0, true));
    }

    #[test]
    fn the_gauge_shows_divers_from_the_right() {
        for (on_board, columns) in [(-3, 9..9), (0, 9..9), (1, 8..9), (6, 3..9)] {
            let game = Seaquest { on_board, ..Seaquest::new() };
            assert_eq!(channel(&game, 8), columns.map(|x| (x, 9)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_newest_of_two_divers_takes_the_sixth_seat() {
        let (older, newer) = (at(5, 4), Swimmer { dx: -1, ..at(5, 4) });
        let mut game = Seaquest { on_board: 5, divers: vec![older, newer], ..under_water() };
        play(&mut game, Move::Stay, &[]);
        assert_eq!(game.on_board, 6);
        assert_eq!(game.divers, [Swimmer { move_countdown: 4, ..older }]);
        // The other goes on swimming, also through a full submarine.
        game.divers[0] = Swimmer { x: 4, move_countdown: 0, ..older };
        play(&mut game, Move::Stay, &[]);
        assert_eq!((game.on_board, game.divers[0].x), (6, 5));
        game.on_board = 4;
        game.divers[0] = Swimmer { x: 4, move_countdown: 0, ..older };
        play(&mut game, Move::Stay, &[]);
        assert_eq!((game.on_board, game.divers.len()), (5, 0));
    }

    #[test]
    fn an_enemy_shot_kills_before_and_after_it_moves_and_passes_through_others() {
        // It stands in the player's cell, moves into it, or passes by.
        for (x, y, killed) in [(5, 4, true), (4, 4, true), (3, 4, false), (6, 4, false), (4, 5, false)] {
            let mut game = Seaquest { enemy_shots: vec![Shot { x, y, dx: 1 }], ..under_water() };
            game.fish = vec![at(x + 1, y + 1)];
            assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, killed), "({x}, {y})");
            assert_eq!(game.enemy_shots, [Shot { x: x + 1, y, dx: 1 }]);
        }
        let mut game = Seaquest { enemy_shots: vec![Shot { x: 9, y: 3, dx: 1 }], ..under_water() };
        play(&mut game, Move::Stay, &[]);
        assert_eq!(game.enemy_shots, []);
    }

    #[test]
    fn one_shot_hits_the_oldest_fish_before_any_submarine() {
        let (old, new) = (Swimmer { move_countdown: 3, ..at(4, 4) }, at(4, 4));
        let mut game = Seaquest { fish: vec![old, new], subs: vec![old, new], ..under_water() };
        let left = |list: &[Swimmer]| list.iter().map(|s| s.move_countdown).collect::<Vec<_>>();
        let mut seen = Vec::new();
        for _ in 0..4 {
            game.gun_countdown = 0;
            for swimmer in game.fish.iter_mut().chain(&mut game.subs) {
                swimmer.move_countdown += 1; // made up for by the step
            }
            assert_eq!(play(&mut game, Move::Fire, &[]), step(1.0, false));
            assert_eq!(game.player_shots, []);
            seen.push((left(&game.fish), left(&game.subs)));
        }
        let expected =
            [(vec![5], vec![3, 5]), (vec![], vec![3, 5]), (vec![], vec![5]), (Vec::new(), Vec::new())];
        assert_eq!(seen, expected);
    }

    #[test]
    fn of_two_shots_in_a_cell_the_newer_hits_first_and_an_enemy_swims_into_the_older() {
        // Two shots arrive at one fish: the newer takes it, the older flies on.
        let shots = vec![Shot { x: 5, y: 2, dx: -1 }, Shot { x: 3, y: 2, dx: 1 }];
        let mut game = Seaquest { player_shots: shots.clone(), fish: vec![at(4, 2)], ..under_water() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
        assert_eq!(game.player_shots, [Shot { x: 4, y: 2, dx: -1 }]);
        // A fish swims into the cell of two: the older is gone.
        let fish = vec![Swimmer { x: 3, move_countdown: 0, ..at(3, 2) }];
        let mut game = Seaquest { player_shots: shots, fish, ..under_water() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
        assert_eq!(game.player_shots, [Shot { x: 4, y: 2, dx: 1 }]);
        assert_eq!(game.fish, []);
    }

    #[test]
    fn a_destroyed_submarine_fires_its_last_shot() {
        // It swims from (2, 4) into the shot that arrives in (3, 4), and fires from there.
        let sub = Swimmer { move_countdown: 0, gun_countdown: 0, ..at(2, 4) };
        let shot = Shot { x: 4, y: 4, dx: -1 };
        let mut game = Seaquest { subs: vec![sub], player_shots: vec![shot], ..under_water() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
        assert_eq!((game.subs.len(), game.player_shots.len()), (0, 0));
        assert_eq!(channel(&game, 4), [(4, 4)]);
        // One that leaves the board fires off the board.
        let mut game = Seaquest { subs: vec![Swimmer { x: 9, ..sub }], ..under_water() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, false));
        assert_eq!((game.subs.len(), game.enemy_shots.len()), (0, 0));
    }

    #[test]
    fn enemies_kill_before_and_after_they_move() {
        for (x, move_countdown, killed) in [(5, 3, true), (5, 0, true), (4, 0, true), (4, 1, false)] {
            let enemy = Swimmer { move_countdown, ..at(x, 4) };
            for mut game in [
                Seaquest { fish: vec![enemy], ..under_water() },
                Seaquest { subs: vec![enemy], ..under_water() },
            ] {
                assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, killed), "{enemy:?}");
            }
        }
    }

    #[test]
    fn an_enemy_does_not_enter_a_row_that_others_cross_the_other_way() {
        let game = Seaquest { spawn_countdown: 0, subs: vec![at(3, 2)], ..Seaquest::new() };
        for (script, fish) in [([0.5, 0.5, 2.0], 0), ([0.4, 0.5, 2.0], 1), ([0.5, 0.5, 3.0], 1)] {
            let mut game = game.clone();
            play(&mut game, Move::Stay, &script);
            assert_eq!((game.fish.len(), game.subs.len()), (fish, 1));
            assert_eq!(game.spawn_countdown, 19);
        }
    }

    #[test]
    fn each_surfacing_ramps_down_to_intervals_of_one_and_two() {
        let below = Seaquest { y: 1, at_surface: false, on_board: 1, ..Seaquest::new() };
        let mut game = below.clone();
        let mut intervals = Vec::new();
        for _ in 0..22 {
            (game.y, game.at_surface, game.on_board, game.spawn_countdown) = (1, false, 1, 5);
            play(&mut game, Move::Up, &[]);
            intervals.push((game.spawn_interval, game.move_interval));
            game.diver_countdown = 5;
        }
        let expected: Vec<_> = (1..=22).map(|n| ((20 - n).max(1), (5 - n / 2).max(2))).collect();
        assert_eq!(intervals, expected);
        assert_eq!(game.ramp_level, 19);

        let mut game = below;
        game.step(Move::Up, false, &mut Script(&[]));
        assert_eq!((game.spawn_interval, game.ramp_level, game.oxygen), (20, 0, 200), "ramping is off");
    }
}
