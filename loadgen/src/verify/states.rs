//! The lists that subscribers have held, each kept once.
//!
//! A state is one list of one service as the oracle knows it: per publisher the operation shown (or that nothing is shown)
//! and the latest operation covered. Subscribers hold a state's number only. States are kept as their difference from the
//! state they came from; the full list is there while somebody holds the state, and now and then for good, so that any
//! other can be rebuilt in as many steps as a list has places.

use std::rc::Rc;

use hashbrown::HashMap;
use slotcast_engine::id::mix64;

/// Steps between full lists that are kept for good, at least.
const STEPS_MIN: u32 = 64;

/// What a list says about one publisher.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Place {
    /// Number of the operation whose content is shown; 0: not in the list.
    pub shown: u32,
    /// Largest number of an operation whose effect the list has included.
    pub covered: u32,
}

impl Place {
    fn identity(self, place: u32) -> u64 {
        let packed = u64::from(self.shown) << 32 | u64::from(self.covered);
        if packed == 0 { 0 } else { mix64(packed ^ mix64(u64::from(place) + 1)) }
    }
}

/// What a publisher at `place` that shows operation `shown` adds to the sum over a list's content.
pub fn content(place: u32, shown: u32) -> u64 {
    if shown == 0 { 0 } else { mix64(u64::from(place) << 32 | u64::from(shown)) }
}

struct State {
    service: u32,
    parent: u32,
    steps: u32,
    /// Sum over content and coverage: equal states get one number.
    identity: u64,
    /// Sum over content alone.
    content: u64,
    /// Planned changes covered.
    planned: u32,
    delta: Box<[(u32, Place)]>,
    list: Option<Rc<[Place]>>,
    keeps_list: bool,
}

/// See the module.
pub struct States {
    states: Vec<State>,
    /// Subscribers that hold each, close together: every delivery counts here.
    holders: Vec<u32>,
    index: HashMap<(u32, u64), u32>,
}

impl States {
    /// The empty list of each service, numbered as the services; `places` are the publishers of each.
    pub fn new(places: impl Iterator<Item = usize>) -> Self {
        let mut states = Vec::new();
        let mut index = HashMap::new();
        for (service, places) in (0u32..).zip(places) {
            index.insert((service, 0), service);
            states.push(State {
                service,
                parent: service,
                steps: 0,
                identity: 0,
                content: 0,
                planned: 0,
                delta: Box::default(),
                list: Some(vec![Place::default(); places].into()),
                keeps_list: true,
            });
        }
        Self { holders: vec![0; states.len()], states, index }
    }

    /// The state of `service` in which nothing has been seen.
    pub fn empty(&self, service: u32) -> u32 {
        service
    }

    /// The full list of a state.
    pub fn list(&mut self, state: u32) -> Rc<[Place]> {
        if let Some(list) = &self.states[state as usize].list {
            return list.clone();
        }
        let mut path = vec![state];
        let mut at = self.states[state as usize].parent;
        while self.states[at as usize].list.is_none() {
            path.push(at);
            at = self.states[at as usize].parent;
        }
        let mut list = self.states[at as usize].list.as_deref().unwrap_or_default().to_vec();
        for state in path.into_iter().rev() {
            for &(place, value) in &self.states[state as usize].delta {
                list[place as usize] = value;
            }
        }
        let list: Rc<[Place]> = list.into();
        if self.holders[state as usize] > 0 {
            self.states[state as usize].list = Some(list.clone());
        }
        list
    }

    /// The state that `from` becomes by `delta` (no place twice), which covers `planned` planned changes more.
    pub fn step(&mut self, from: u32, delta: Vec<(u32, Place)>, planned: u32) -> u32 {
        let mut list = self.list(from).to_vec();
        let origin = &self.states[from as usize];
        let (service, mut identity, mut shown) = (origin.service, origin.identity, origin.content);
        for &(place, value) in &delta {
            let was = std::mem::replace(&mut list[place as usize], value);
            identity = identity.wrapping_sub(was.identity(place)).wrapping_add(value.identity(place));
            shown = shown.wrapping_sub(content(place, was.shown)).wrapping_add(content(place, value.shown));
        }
        if let Some(&known) = self.index.get(&(service, identity)) {
            return known;
        }
        let steps = origin.steps + 1;
        let keeps_list = steps >= STEPS_MIN.max(list.len() as u32);
        let state = State {
            service,
            parent: from,
            steps: if keeps_list { 0 } else { steps },
            identity,
            content: shown,
            planned: origin.planned + planned,
            delta: delta.into(),
            list: Some(list.into()),
            keeps_list,
        };
        let number = self.states.len() as u32;
        self.states.push(state);
        self.holders.push(0);
        self.index.insert((service, identity), number);
        number
    }

    /// One subscriber more holds `state`.
    pub fn hold(&mut self, state: u32) {
        self.holders[state as usize] += 1;
    }

    /// One subscriber less holds `state`.
    pub fn release(&mut self, state: u32) {
        self.release_all(state, 1);
    }

    /// `times` subscribers go over from one state to another.
    pub fn pass(&mut self, from: u32, to: u32, times: u32) {
        self.holders[to as usize] += times;
        self.release_all(from, times);
    }

    fn release_all(&mut self, state: u32, times: u32) {
        let holders = &mut self.holders[state as usize];
        *holders -= times;
        if *holders == 0 {
            let entry = &mut self.states[state as usize];
            if !entry.keeps_list {
                entry.list = None;
            }
        }
    }

    /// The service a state belongs to.
    pub fn service(&self, state: u32) -> u32 {
        self.states[state as usize].service
    }

    /// The sum over a state's content.
    pub fn content(&self, state: u32) -> u64 {
        self.states[state as usize].content
    }

    /// Planned changes that a state covers.
    pub fn planned(&self, state: u32) -> u32 {
        self.states[state as usize].planned
    }

    /// States that somebody holds, with their holders.
    pub fn held(&self) -> impl Iterator<Item = (u32, u32)> {
        (0u32..).zip(self.holders.iter().copied()).filter(|(_, holders)| *holders > 0)
    }

    /// States ever seen.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there is no service at all.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn place(shown: u32, covered: u32) -> Place {
        Place { shown, covered }
    }

    #[test]
    fn equal_lists_become_one_state_by_whatever_way() {
        let mut states = States::new([3, 3].into_iter());
        let one = states.step(0, vec![(0, place(1, 1))], 0);
        let both = states.step(one, vec![(1, place(1, 1))], 1);
        let other = states.step(0, vec![(1, place(1, 1)), (0, place(1, 1))], 1);
        assert_eq!(both, other);
        assert_ne!(both, states.step(1, vec![(1, place(1, 1)), (0, place(1, 1))], 1), "another service");
        assert_ne!(states.content(one), states.content(both));
        assert_eq!(states.planned(both), 1);
        let gone = states.step(one, vec![(0, place(0, 2))], 0);
        assert_eq!(states.content(gone), 0);
        assert_ne!(gone, 0, "what it covers is part of a state");
    }

    #[test]
    fn released_lists_are_rebuilt_as_they_were() {
        let mut states = States::new([7].into_iter());
        let mut random = Random::new(1, 1);
        let (mut now, mut model) = (0, vec![Place::default(); 7]);
        let mut seen = Vec::new();
        for number in 1..1000u32 {
            let at = random.below(7) as u32;
            model[at as usize] = place(number, number);
            now = states.step(now, vec![(at, model[at as usize])], 0);
            states.hold(now);
            states.release(now);
            seen.push((now, model.clone()));
        }
        let kept = states.states.iter().filter(|state| state.list.is_some()).count();
        assert!(kept < 20, "{kept} full lists");
        for (state, model) in seen {
            assert_eq!(&*states.list(state), model);
        }
    }
}
