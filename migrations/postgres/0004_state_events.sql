-- Since when a job runs is asked with every report of its progress, of which a long job has many.
create index job_event_state on job_event (job, sequence) where name = 'state';
