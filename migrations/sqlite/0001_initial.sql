-- The first schema. Identifiers are UUIDs as text, times are microseconds since the Unix epoch in UTC, JSON is text,
-- digests are text of the form `sha256:<hex>`, features are little-endian float16.

-- A named classifier over the backbone.
create table model (
    name text not null primary key,
    config text not null,                       -- how it learns, JSON
    backbone text,                              -- digest of the one that it learns on; null until its first job
    active integer,                             -- the version that answers; null until the first is published
    next_version integer not null default 1,    -- numbers are given out once
    created_at integer not null,
    foreign key (name, active) references version (model, number)
) strict;

-- One execution that learns a task.
create table job (
    id text not null primary key,
    kind text not null,
    model text not null references model (name),
    task text not null,
    state text not null check (state in ('queued', 'running', 'succeeded', 'held', 'failed', 'cancelled')),
    phase text,
    progress real not null default 0,
    attempts integer not null default 0,
    owner text,                                 -- who runs it: `<server>:<boot>`
    lease_until integer,                        -- until when the owner may go silent
    version integer,                            -- what it published
    error text,                                 -- why it failed, JSON
    report text not null,                       -- what it found out, JSON
    created_at integer not null,
    updated_at integer not null,
    foreign key (model, version) references version (model, number),
    check ((state = 'running') = (owner is not null)),
    check ((state = 'running') = (lease_until is not null))
) strict;

-- A model learns a task of one name at a time, and runs one job at a time.
create unique index job_open_task on job (model, task) where state in ('queued', 'running');
create unique index job_one_running on job (model) where state = 'running';
create index job_open on job (created_at, id) where state in ('queued', 'running');

-- The classes that a job's task brings.
create table job_class (
    job text not null references job (id),
    position integer not null,
    label text not null,
    prompt text,
    primary key (job, position),
    unique (job, label)
) strict;

-- Labels that a queued or running job is about to bring: no second job may bring them to the same model.
create table job_label (
    model text not null references model (name),
    label text not null,
    job text not null references job (id),
    primary key (model, label)
) strict;
create index job_label_of_job on job_label (job);

-- The examples of an open job. An image waits here until its features take its place; all go when the job ends.
create table job_example (
    job text not null,
    position integer not null,
    class integer not null,                     -- position in job_class
    split text check (split in ('train', 'held_out')),  -- null where the caller leaves the choice
    name text not null,                         -- what the caller calls it
    digest text not null,                       -- of the image's bytes
    error text,                                 -- why the image was discarded
    features blob,
    image blob,
    primary key (job, position),
    foreign key (job, class) references job_class (job, position),
    check (image is null or (features is null and error is null)),
    check (image is not null or features is not null or error is not null)
) strict;

-- The same content counts once in a class and split.
create unique index job_example_once on job_example (job, class, coalesce(split, ''), digest);
create index job_example_pending on job_example (job, position) where image is not null;

-- What happened to a job, in order.
create table job_event (
    job text not null references job (id),
    sequence integer not null,
    name text not null,
    data text not null,                         -- JSON
    at integer not null,
    primary key (job, sequence)
) strict;

-- An immutable snapshot and where it comes from. The large columns stand last, so that reading the others skips them.
create table version (
    model text not null references model (name),
    number integer not null,
    parent integer,                             -- null for one learned on the bare backbone
    task text not null,
    job text not null unique references job (id),
    digest text not null,                       -- of the snapshot
    bytes integer not null,                     -- of the snapshot
    config text not null,
    report text not null,
    train integer not null,
    held_out integer not null,
    created_at integer not null,
    statistics blob not null,
    snapshot blob not null,
    primary key (model, number),
    foreign key (model, parent) references version (model, number),
    check (parent < number)
) strict;

-- The classes that a version brings; it knows those of its ancestors besides.
create table class (
    id text not null primary key,
    model text not null,
    version integer not null,
    position integer not null,
    label text not null,
    prompt text,
    unique (model, version, position),
    unique (model, version, label),
    foreign key (model, version) references version (model, number)
) strict;

-- The held-out examples of the task that a version brings.
create table held_out (
    model text not null,
    version integer not null,
    position integer not null,
    class text not null references class (id),
    digest text not null,
    features blob not null,
    primary key (model, version, position),
    foreign key (model, version) references version (model, number)
) strict;

-- How a version does on the held-out examples of each task it knows, at the time it was published.
create table tally (
    model text not null,
    version integer not null,
    task_version integer not null,              -- the version that brought the task
    correct integer not null,
    zero_shot_correct integer not null,         -- the bare backbone's right answers among the same classes
    total integer not null,
    primary key (model, version, task_version),
    foreign key (model, version) references version (model, number),
    foreign key (model, task_version) references version (model, number)
) strict;

-- What answered when, and who made it so. Rows are only ever added.
create table activation (
    id integer not null primary key autoincrement,
    model text not null,
    version integer not null,
    previous integer,
    actor text not null,
    reason text,
    at integer not null,
    foreign key (model, version) references version (model, number),
    foreign key (model, previous) references version (model, number)
) strict;
create index activation_of_model on activation (model, id);
