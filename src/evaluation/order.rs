//! Which classes come when.

use std::ops::Range;

use rand_mt::Mt;

/// An order of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassOrder {
    /// As the data numbers them.
    Given,
    /// The permutation that NumPy's `RandomState(seed).permutation` draws: 1993 is the order that class-incremental
    /// learning is usually reported in (Rebuffi et al. 2017).
    Seed(u32),
}

impl ClassOrder {
    /// The order of `classes` classes.
    pub fn permutation(self, classes: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..classes as u32).collect();
        if let Self::Seed(seed) = self {
            let mut generator = Mt::new(seed);
            for last in (1..classes).rev() {
                order.swap(last, up_to(&mut generator, last as u32) as usize);
            }
        }
        order
    }

    /// The order with the next seed; `Given` has none.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Self::Given => Self::Given,
            Self::Seed(seed) => Self::Seed(seed.wrapping_add(1)),
        }
    }
}

impl std::str::FromStr for ClassOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "given" => Ok(Self::Given),
            seed => seed
                .parse()
                .map(Self::Seed)
                .map_err(|_| format!("{text:?} is neither `given` nor a seed such as 1993")),
        }
    }
}

impl std::fmt::Display for ClassOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given => f.write_str("given"),
            Self::Seed(seed) => write!(f, "{seed}"),
        }
    }
}

/// A number from 0 to `most`, as NumPy's legacy `random_interval` draws it: masked, and again until it fits.
fn up_to(generator: &mut Mt, most: u32) -> u32 {
    let mask = u32::MAX >> most.leading_zeros();
    loop {
        let value = generator.next_u32() & mask;
        if value <= most {
            return value;
        }
    }
}

/// How many classes each task brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tasks {
    /// Where each task's classes begin in the order, and the end of the last.
    bounds: Vec<usize>,
}

impl Tasks {
    /// `tasks` tasks of as equal sizes as can be, after a first one of `base` classes unless that is 0.
    ///
    /// # Errors
    /// When there are fewer classes than that takes.
    pub fn split(classes: usize, tasks: usize, base: usize) -> Result<Self, String> {
        let rest = classes
            .checked_sub(base)
            .filter(|&rest| tasks > 0 && rest >= tasks);
        let Some(rest) = rest else {
            return Err(format!(
                "{classes} classes are too few for {tasks} tasks after {base} classes"
            ));
        };
        let mut bounds: Vec<usize> = (0..=tasks).map(|task| base + rest * task / tasks).collect();
        if base > 0 {
            bounds.insert(0, 0);
        }
        Ok(Self { bounds })
    }

    /// All classes as one task.
    pub fn joint(classes: usize) -> Self {
        Self {
            bounds: vec![0, classes],
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The places of a task's classes in the order, which are its columns.
    pub fn columns(&self, task: usize) -> Range<usize> {
        self.bounds[task]..self.bounds[task + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_1993_is_the_order_of_the_literature() {
        // numpy.random.RandomState(1993).permutation(100)[:10]
        let order = ClassOrder::Seed(1993).permutation(100);
        assert_eq!(order[..10], [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]);
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
    }

    #[test]
    fn tasks_share_the_classes() {
        let sizes = |tasks: &Tasks| {
            (0..tasks.count())
                .map(|task| tasks.columns(task).len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&Tasks::split(10, 3, 0).expect("enough")), [3, 3, 4]);
        assert_eq!(sizes(&Tasks::split(10, 2, 5).expect("enough")), [5, 2, 3]);
        assert_eq!(sizes(&Tasks::joint(7)), [7]);
        assert!(Tasks::split(3, 4, 0).is_err() && Tasks::split(3, 1, 4).is_err());
    }
}
