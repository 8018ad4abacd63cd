-- Tasks that are no longer known.

-- The task that a version does not know any more although its parent does. Such a version brings no task of its own: in
-- its row of `version`, `task` is the name of the one that it removes. Versions before it know the task as ever.
create table removal (
    model text not null,
    version integer not null,        -- the one that does without the task
    task_version integer not null,   -- the one that brought the task
    primary key (model, version),
    foreign key (model, version) references version (model, number),
    foreign key (model, task_version) references version (model, number),
    check (task_version < version)
) strict;
