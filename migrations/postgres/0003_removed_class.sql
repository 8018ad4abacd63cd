-- Classes that are no longer known although others of their task are.

-- The class that goes, where not the whole task does. The version that does without it keeps the statistics of the task
-- without the class, in place of those that the task's own version keeps.
alter table removal add column class text references class (id);
