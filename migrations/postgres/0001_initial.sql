-- The first schema. Identifiers are UUIDs as text, times are microseconds since the Unix epoch in UTC, JSON is text,
-- digests are text of the form `sha256:<hex>`, features are little-endian float16.

-- A named classifier over the backbone.
create table model (
    name text collate "C" not null primary key,
    config text not null,                       -- how it learns, JSON
    backbone text,                              -- digest of the one that it learns on; null until its first job
    active bigint,                              -- the version that answers; null until the first is published
    next_version bigint not null default 1,     -- numbers are given out once
    created_at bigint not null
);

-- One execution that learns a task.
create table job (
    id text not null primary key,
    kind text not null,
    model text not null references model (name),
    task text not null,
    state text not null check (state in ('queued', 'running', 'succeeded', 'held', 'failed', 'cancelled')),
    phase text,
    progress double precision not null default 0,
    attempts bigint not null default 0,
    owner text,                                 -- who runs it: `<server>:<boot>`
    lease_until bigint,                         -- until when the owner may go silent
    version bigint,                             -- what it published
    error text,                                 -- why it failed, JSON
    report text not null,                       -- what it found out, JSON
    created_at bigint not null,
    updated_at bigint not null,
    check ((state = 'running') = (owner is not null)),
    check ((state = 'running') = (lease_until is not null))
);

-- A model learns a task of one name at a time, and runs one job at a time.
create unique index job_open_task on job (model, task) where state in ('queued', 'running');
create unique index job_one_running on job (model) where state = 'running';
create index job_open on job (created_at, id) where state in ('queued', 'running');

-- The classes that a job's task brings.
create table job_class (
    job text not null references job (id),
    position bigint not null,
    label text not null,
    prompt text,
    primary key (job, position),
    unique (job, label)
);

-- Labels that a queued or running job is about to bring: no second job may bring them to the same model.
create table job_label (
    model text not null references model (name),
    label text not null,
    job text not null references job (id),
    primary key (model, label)
);
create index job_label_of_job on job_label (job);

-- The examples of an open job. An image waits here until its features take its place; all go when the job ends.
create table job_example (
    job text not null,
    position bigint not null,
    class bigint not null,                      -- position in job_class
    split text check (split in ('train', 'held_out')),  -- null where the caller leaves the choice
    name text not null,                         -- what the caller calls it
    digest text not null,                       -- of the image's bytes
    error text,                                 -- why the image was discarded
    features bytea,
    image bytea,
    primary key (job, position),
    foreign key (job, class) references job_class (job, position),
    check (image is null or (features is null and error is null)),
    check (image is not null or features is not null or error is not null)
);

-- The same content counts once in a class and split.
create unique index job_example_once on job_example (job, class, coalesce(split, ''), digest);
create index job_example_pending on job_example (job, position) where image is not null;

-- What happened to a job, in order.
create table job_event (
    job text not null references job (id),
    sequence bigint not null,
    name text not null,
    data text not null,                         -- JSON
    at bigint not null,
    primary key (job, sequence)
);

-- An immutable snapshot and where it comes from. The large columns stand last, so that reading the others skips them.
create table version (
    model text not null references model (name),
    number bigint not null,
    parent bigint,                              -- null for one learned on the bare backbone
    task text not null,
    job text not null unique references job (id),
    digest text not null,                       -- of the snapshot
    bytes bigint not null,                      -- of the snapshot
    config text not null,
    report text not null,
    train bigint not null,
    held_out bigint not null,
    created_at bigint not null,
    statistics bytea not null,
    snapshot bytea not null,
    primary key (model, number),
    foreign key (model, parent) references version (model, number),
    check (parent < number)
);

alter table model
    add constraint model_active foreign key (name, active) references version (model, number);
alter table job
    add constraint job_version foreign key (model, version) references version (model, number);

-- The classes that a version brings; it knows those of its ancestors besides.
create table class (
    id text not null primary key,
    model text not null,
    version bigint not null,
    position bigint not null,
    label text not null,
    prompt text,
    unique (model, version, position),
    unique (model, version, label),
    foreign key (model, version) references version (model, number)
);

-- The held-out examples of the task that a version brings.
create table held_out (
    model text not null,
    version bigint not null,
    position bigint not null,
    class text not null references class (id),
    digest text not null,
    features bytea not null,
    primary key (model, version, position),
    foreign key (model, version) references version (model, number)
);

-- How a version does on the held-out examples of each task it knows, at the time it was published.
create table tally (
    model text not null,
    version bigint not null,
    task_version bigint not null,               -- the version that brought the task
    correct bigint not null,
    zero_shot_correct bigint not null,          -- the bare backbone's right answers among the same classes
    total bigint not null,
    primary key (model, version, task_version),
    foreign key (model, version) references version (model, number),
    foreign key (model, task_version) references version (model, number)
);

-- What answered when, and who made it so. Rows are only ever added.
create table activation (
    id bigint generated always as identity primary key,
    model text not null,
    version bigint not null,
    previous bigint,
    actor text not null,
    reason text,
    at bigint not null,
    foreign key (model, version) references version (model, number),
    foreign key (model, previous) references version (model, number)
);
create index activation_of_model on activation (model, id);

-- Every entry of the log is announced to the servers that share the database, when it is committed.
create function announce_activation() returns trigger language plpgsql as $$
begin
    perform pg_notify('clipkeep_activation', new.model);
    return null;
end
$$;

create trigger announce_activation after insert on activation
    for each row execute function announce_activation();
