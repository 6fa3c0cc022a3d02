{{- /* 46 characters: what is put behind it, and by Kubernetes behind that, stays within the 63 of a label. */ -}}
{{- define "gateway.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $both := printf "%s-%s" .Release.Name $name -}}
{{- $short := or (contains .Release.Name $name) (contains $name .Release.Name) -}}
{{- default (ternary .Release.Name $both $short) .Values.fullnameOverride | replace "." "-" | trunc 46 | trimSuffix "-" -}}
{{- end -}}

{{- define "gateway.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "gateway.serviceAccount" -}}
{{- default (ternary (include "gateway.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "gateway.image" -}}
{{- with .Values.image -}}
{{- .repository -}}
{{- if .digest -}}@{{ .digest }}{{- else -}}:{{ default $.Chart.AppVersion .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What a schema cannot say, or not so that it helps: refused before anything reaches the cluster. */ -}}
{{- define "gateway.refuse" -}}
{{- if eq .Values.store.kind "sqlite" -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- fail "replicas: with store.kind `sqlite` write 1 (or 0): a file has one process. Several share a Redis: store.kind `redis`" -}}
{{- end -}}
{{- if or .Values.autoscaling.enabled .Values.deliver.separate -}}
{{- fail "store.kind: with `sqlite` there is one pod, so autoscaling.enabled and deliver.separate stay false. Several share a Redis: store.kind `redis`" -}}
{{- end -}}
{{- end -}}
{{- $secret := "(SECRET|TOKEN|PASSWORD|KEY|OTLP(_[A-Z]+)?_HEADERS|^GATEWAY_ALERT_WEBHOOK)$" -}}
{{- $own := "^GATEWAY_(STORE|MAPPINGS|EXPORTS)(_FILE)?$" -}}
{{- range $name, $_ := .Values.settings -}}
{{- if regexMatch $secret $name -}}
{{- fail (printf "settings: %s is a secret, and values are kept in plain text: put it into the Secret `%s`" $name $.Values.secret.name) -}}
{{- end -}}
{{- if regexMatch $own $name -}}
{{- fail (printf "settings: the chart sets %s: choose by `store`, `mappings` and `exports`" $name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if and (regexMatch $secret .name) (hasKey . "value") -}}
{{- fail (printf "extraEnv: %s is a secret, and values are kept in plain text: give it by valueFrom" .name) -}}
{{- end -}}
{{- if regexMatch $own .name -}}
{{- fail (printf "extraEnv: the chart sets %s: choose by `store`, `mappings` and `exports`" .name) -}}
{{- end -}}
{{- end -}}
{{- $m := .Values.mappings -}}
{{- $sources := or $m.sources $m.existing.sources -}}
{{- $destinations := or $m.destinations $m.existing.destinations -}}
{{- if ne (empty $sources) (empty $destinations) -}}
{{- fail "mappings: sources and destinations take the place of all bundled ones together: give both. `gateway init my-mappings` writes the bundled ones to begin with" -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling: minReplicas is more than maxReplicas" -}}
{{- end -}}
{{- end -}}
{{- $stop := add .Values.rollout.leaveSeconds 40 -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $stop) -}}
{{- fail (printf "terminationGracePeriodSeconds: a stop takes up to rollout.leaveSeconds and 40 more (requests and deliveries under way): write %d or more" $stop) -}}
{{- end -}}
{{- if and (eq (toString .Values.rollout.maxSurge) "0") (eq (toString .Values.rollout.maxUnavailable) "0") -}}
{{- fail "rollout: maxSurge and maxUnavailable cannot both be 0: nothing could ever be replaced" -}}
{{- end -}}
{{- end -}}

{{- define "gateway.ownMappings" -}}
{{- if or .Values.mappings.sources .Values.mappings.existing.sources -}}true{{- end -}}
{{- end -}}

{{- define "gateway.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "gateway.envFrom" -}}
- secretRef: {name: {{ .Values.secret.name }}}
{{- with .Values.extraEnvFrom }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gateway.env" -}}
{{- if eq .Values.store.kind "redis" }}
# By name, so that a Secret without it keeps the pod from starting: without a store of its own the gateway would
# take webhooks into a file that goes with the pod.
- name: GATEWAY_STORE
  valueFrom:
    secretKeyRef: {name: {{ default .Values.secret.name .Values.store.url.secretName }}, key: {{ .Values.store.url.key }}}
{{- else if eq .Values.store.kind "trial" }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.secret.name }}, key: {{ .Values.store.trial.passwordKey }}}
- name: GATEWAY_STORE
  value: redis://:$(REDIS_PASSWORD)@{{ include "gateway.fullname" . }}-redis:6379/0
{{- else }}
- {name: GATEWAY_STORE, value: "sqlite:////data/gateway.db"}
{{- end }}
- {name: GATEWAY_EXPORTS, value: /data/exports}
{{- if include "gateway.ownMappings" . }}
- {name: GATEWAY_MAPPINGS, value: /etc/gateway/mappings}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gateway.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
{{- if .Values.exports.existingClaim }}
- {name: exports, mountPath: /data/exports}
{{- end }}
{{- if include "gateway.ownMappings" . }}
# Whole folders, no subPath: the kubelet replaces them when a ConfigMap changes, and the gateway sees that.
- {name: sources, mountPath: /etc/gateway/mappings/sources, readOnly: true}
- {name: destinations, mountPath: /etc/gateway/mappings/destinations, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gateway.volumes" -}}
{{- $full := include "gateway.fullname" . -}}
- {name: tmp, emptyDir: {sizeLimit: 256Mi}}
{{- if eq .Values.store.kind "sqlite" }}
- {name: data, persistentVolumeClaim: {claimName: {{ default $full .Values.store.sqlite.existingClaim }}}}
{{- else }}
- {name: data, emptyDir: {sizeLimit: 256Mi}}
{{- end }}
{{- with .Values.exports.existingClaim }}
- {name: exports, persistentVolumeClaim: {claimName: {{ . }}}}
{{- end }}
{{- if include "gateway.ownMappings" . }}
{{- with .Values.mappings.existing }}
- {name: sources, configMap: {name: {{ default (printf "%s-sources" $full) .sources }}}}
- {name: destinations, configMap: {name: {{ default (printf "%s-destinations" $full) .destinations }}}}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* A Deployment's spec. Of: root, component, replicas (null: the autoscaler's), args, port, resources. */ -}}
{{- define "gateway.workload" -}}
{{- $selector := include "gateway.selector" .root -}}
{{- $component := .component -}}
{{- with .root.Values -}}
{{- if not (kindIs "invalid" $.replicas) }}
replicas: {{ $.replicas }}
{{- end }}
revisionHistoryLimit: 5
{{- if eq .store.kind "sqlite" }}
# One process a file: the old one must be gone before the new one opens it.
strategy: {type: Recreate}
{{- else }}
strategy:
  type: RollingUpdate
  rollingUpdate: {maxSurge: {{ .rollout.maxSurge }}, maxUnavailable: {{ .rollout.maxUnavailable }}}
{{- end }}
selector:
  matchLabels:
    {{- $selector | nindent 4 }}
    app.kubernetes.io/component: {{ $component }}
template:
  metadata:
    labels:
      {{- include "gateway.labels" $.root | nindent 6 }}
      app.kubernetes.io/component: {{ $component }}
      {{- with .podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    serviceAccountName: {{ include "gateway.serviceAccount" $.root }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with .imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- toYaml .podSecurityContext | nindent 6 }}
    terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
    containers:
      - name: gateway
        image: {{ include "gateway.image" $.root }}
        imagePullPolicy: {{ .image.pullPolicy }}
        args: {{ toJson $.args }}
        envFrom:
          {{- include "gateway.envFrom" $.root | nindent 10 }}
        env:
          {{- include "gateway.env" $.root | trim | nindent 10 }}
        ports:
          - {name: http, containerPort: {{ $.port }}, protocol: TCP}
        startupProbe:
          httpGet: {path: /livez, port: http}
          {{- toYaml .probes.startup | nindent 10 }}
        livenessProbe:
          httpGet: {path: /livez, port: http}
          {{- toYaml .probes.liveness | nindent 10 }}
        readinessProbe:
          httpGet: {path: /readyz, port: http}
          {{- toYaml .probes.readiness | nindent 10 }}
        {{- if .rollout.leaveSeconds }}
        lifecycle:
          # Until no proxy sends anything here any more: only then is the gateway told to stop.
          preStop: {sleep: {seconds: {{ .rollout.leaveSeconds }}}}
        {{- end }}
        {{- with $.resources }}
        resources:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        securityContext:
          {{- include "gateway.restricted" $.root | nindent 10 }}
        volumeMounts:
          {{- include "gateway.volumeMounts" $.root | nindent 10 }}
    volumes:
      {{- include "gateway.volumes" $.root | nindent 6 }}
    {{- with .priorityClassName }}
    priorityClassName: {{ . }}
    {{- end }}
    {{- with .nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .affinity }}
    affinity:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .topologySpread }}
    topologySpreadConstraints:
      {{- range . }}
      - topologyKey: {{ .topologyKey }}
        maxSkew: {{ .maxSkew }}
        whenUnsatisfiable: {{ .whenUnsatisfiable }}
        labelSelector:
          matchLabels:
            {{- $selector | nindent 12 }}
            app.kubernetes.io/component: {{ $component }}
        matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
{{- end -}}
{{- end -}}
